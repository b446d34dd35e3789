"""The base that can write turns: its vocabulary, what it is taught, and what it is not."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from fedmed.data.phantom_tools import phantom_tool_examples
from fedmed.models import pretrain_data
from fedmed.models.base import load_base
from fedmed.models.pretrain_turns import add_words, build_turns_base, turn_records, words_of_turns
from fedmed.tools import SPECS, read_turn

QUIET = {"phantoms": 64, "steps": 2, "measured": 8, "report": lambda line: None}


@pytest.fixture(scope="module")
def taught() -> list[tuple[str, str]]:
    public = pretrain_data.make_phantom_set(60, 0, "train").records
    rng = np.random.default_rng(0)
    return [record[:2] for known in public for record in turn_records(known, rng)]


def test_the_words_of_a_turn_become_one_token_each_and_come_back_as_they_were() -> None:
    base = load_base("fedmed-tiny")
    old = base.model.get_input_embeddings().weight.detach().clone()
    turns = [item.answer for item in itertools.islice(phantom_tool_examples(20, seed=0, split="train"), 40)]
    before = [len(base.processor.tokenizer.encode(turn)) for turn in turns]
    add_words(base.model, base.processor)
    tokenizer = base.processor.tokenizer
    assert all(len(tokenizer.encode(word, add_special_tokens=False)) == 1 for word in words_of_turns())
    encoded = [tokenizer.encode(turn, add_special_tokens=False) for turn in turns]
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded] == turns
    assert sum(map(len, encoded)) < sum(before) / 2
    new = base.model.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old)
    assert base.model.get_output_embeddings().weight is new
    assert new.shape[0] == len(tokenizer)


def test_every_answer_that_is_taught_is_a_turn_and_every_tool_is_called(taught: list[tuple[str, str]]) -> None:
    turns = [read_turn(answer) for _, answer in taught]
    called = {action.name for turn in turns for action in turn.actions}
    assert called == {spec.name for spec in SPECS}
    for turn in turns:
        assert not any(
            spec.problems(action.params) for action in turn.actions for spec in SPECS if spec.name == action.name
        )


def test_no_question_of_the_dialogues_is_taught(taught: list[tuple[str, str]]) -> None:
    """What the base has seen must not be what the recipe measures."""
    asked = {item.question for item in phantom_tool_examples(300, seed=0, split="test") if not item.history}
    assert not asked & {question for question, _ in taught}
    assert {spec.name for spec in SPECS for question in asked if spec.name in question} == {"report"}  # as any word


def test_the_same_seed_makes_the_same_base_and_another_seed_another(tmp_path: Path) -> None:
    hashes = [
        build_turns_base(tmp_path / name, seed, **QUIET)["sha256"] for name, seed in zip("abc", (0, 0, 1), strict=True)
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    loaded = load_base(str(tmp_path / "a"), expected_sha256=hashes[0])
    assert loaded.model.get_input_embeddings().weight.shape[0] == len(loaded.processor.tokenizer)
