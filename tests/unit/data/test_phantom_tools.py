"""Generated tool dialogues: the truth in them, what they ask for, and that the tiny model can be trained on them."""

from __future__ import annotations

import zlib
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from fedmed.data.collate import Collator
from fedmed.data.images import decode, encode_png
from fedmed.data.phantom import CHUNK, side_word
from fedmed.data.phantom_image import draw
from fedmed.data.phantom_tools import FINDINGS, KINDS, phantom_tool_examples
from fedmed.data.schema import Example
from fedmed.metrics.tools import tool_scores
from fedmed.models.base import load_base
from fedmed.tools import find_spec, read_outputs, read_turn


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return list(phantom_tool_examples(CHUNK, seed=3, split="train"))


def test_every_kind_of_dialogue_is_there_and_the_seed_fixes_all(examples: list[Example]) -> None:
    kinds = Counter(item.attributes["question_type"] for item in examples)
    assert set(kinds) == set(KINDS)
    assert list(phantom_tool_examples(CHUNK, seed=3, split="train")) == examples
    others = list(phantom_tool_examples(CHUNK, seed=3, split="test"))
    assert {item.images[0].data for item in others}.isdisjoint(item.images[0].data for item in examples)
    assert len({item.patient for item in (*examples, *others)}) == 2 * CHUNK
    assert {(item.task, item.source, item.answer_type) for item in examples} == {("tool", "phantom_tools", "open")}


def test_calls_are_valid_and_are_followed_by_the_answer(examples: list[Example]) -> None:
    for call, after in zip(examples, [*examples[1:], None], strict=True):
        turn = read_turn(call.answer)
        assert bool(turn.actions) == (call.attributes["turn"] == "call")
        if turn.actions:
            (action,) = turn.actions
            assert action.name == call.attributes["tool"] == call.attributes["question_type"]
            assert not find_spec(action.name).problems(action.params)
            assert after is not None and after.patient == call.patient
            assert [(said.question, said.answer) for said in after.history] == [(call.question, call.answer)]
            output, again = read_outputs(after.question)
            assert (output.tool, again) == (action.name, call.question)
            assert not read_turn(after.answer).actions
    truths = [item.answer for item in examples]
    assert tool_scores(truths, truths).tool_accuracy == 1.0


def test_what_is_said_is_what_was_drawn(examples: list[Example]) -> None:
    drawn = draw(CHUNK, np.random.default_rng([3, zlib.crc32(b"tools/train")]), "hospital")
    nouns = {noun: name for name, noun in FINDINGS.items()}
    seen: Counter[str] = Counter()
    for item in examples:
        index = int(item.patient.removeprefix("train-"))
        assert item.images[0].data == encode_png(drawn.images[index])
        if item.attributes["turn"] == "call" or not item.history:
            continue
        kind, value = item.attributes["question_type"], read_turn(item.answer).value
        (action,) = read_turn(item.history[0].answer).actions
        if kind == "classification":
            present = drawn.findings[nouns[action.params["labels"][0]]][index].any()
            assert value == ("yes" if present else "no")
        elif kind == "segmentation":
            assert value == f"The lungs cover {round(float(drawn.lungs[index].mean()), 2)} of the image."
        elif kind == "report":
            sides = drawn.findings["effusion"][index] > 0
            side = side_word(sides).replace("both", "bilateral") if sides.any() else "no"
            assert f" {side} pleural effusion." in value
            assert ("enlarged" in value) == drawn.findings["cardiomegaly"][index].any()
        elif kind == "grounding":
            check_boxes(value, drawn.lungs[index] if action.params["prompts"] == ["lungs"] else drawn.opacity[index])
        seen[kind] += 1
    assert all(seen[kind] > 3 for kind in KINDS if kind != "none")


def check_boxes(value: str, field: np.ndarray) -> None:
    """The densest cell lies in one of the boxes."""
    numbers = [
        float(word) for word in value.replace("[", " ").replace("]", " ").replace(",", " ").split() if word[0].isdigit()
    ]
    row, column = np.unravel_index(field.argmax(), field.shape)
    x, y = (column + 0.5) / 7, (row + 0.5) / 7
    boxes = np.array(numbers).reshape(-1, 4)
    assert any(left < x < right and top < y < bottom for left, top, right, bottom in boxes)


def test_turns_survive_the_tiny_models_tokens_and_fit_its_context() -> None:
    processor = load_base("fedmed-tiny").processor
    collator = Collator(processor, max_length=512)
    some = list(islice(phantom_tool_examples(CHUNK, seed=0, split="train"), 60))
    encoded = [collator.encode(item, [decode(item.images[0].data)]) for item in some]
    given = [processor.tokenizer.decode(one.answer, skip_special_tokens=True) for one in encoded]
    assert given == [item.answer for item in some]
    assert max(one.length for one in encoded) <= 480 and max(len(one.answer) for one in encoded) <= 128
