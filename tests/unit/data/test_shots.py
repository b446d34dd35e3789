"""Answered public examples before a question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers_training import record

from aggregator.runs.prepare import write_data
from fedmed.config import load_experiment
from fedmed.data.manifest import load_manifest
from fedmed.data.schema import IMAGE_MARK, marks_fit
from fedmed.data.shots import shown_before, with_public_shots
from fedmed.errors import DataError


def test_every_image_stands_at_its_mark_and_the_question_keeps_its_patient() -> None:
    shots, asked = [record(7, 7, 1, "no"), record(8, 8, 2)], record(1, 1, 1)
    found = shown_before(shots, asked)
    assert found.patient == asked.patient
    assert found.answer == asked.answer
    assert [said.answer for said in found.history] == ["no", "yes"]
    assert found.images == (*shots[0].images, *shots[1].images, *asked.images)
    assert [question.count(IMAGE_MARK) for question in found.questions] == [1, 2, 1]
    assert marks_fit(found)


def test_shots_are_of_the_questions_task_and_the_same_every_time() -> None:
    pool = [record(9, seed, 1) for seed in range(6)] + [replace(record(9, 20, 1), task="report")]
    examples = [record(1, 30, 1), record(2, 3, 1)]  # the second shows an image of the pool
    found = with_public_shots(examples, pool, 2, seed=4)
    assert found == with_public_shots(examples, pool, 2, seed=4)
    assert found != with_public_shots(examples, pool, 2, seed=5)
    assert all(len(item.history) == 2 for item in found)
    assert examples[1].images[0] not in found[1].images[:-1]
    with pytest.raises(DataError, match="the public pool has 1 examples of task report with other images, expected 2"):
        with_public_shots([replace(examples[0], task="report")], pool, 2, seed=4)


def test_a_pool_with_many_questions_about_the_same_image_serves_all_who_do_not_show_it() -> None:
    """VQA-RAD asks ten questions about an image: most of a draw may show the example's own."""
    asked, others = record(1, 3, 1), [record(9, seed, 1) for seed in (20, 21)]
    pool = [*(replace(asked, patient="9", question=f"{number}?") for number in range(30)), *others]
    for seed in range(20):
        (found,) = with_public_shots([asked], pool, 2, seed=seed)
        assert set(found.images[:-1]) == {other.images[0] for other in others}


def test_questions_without_an_image_get_them_too() -> None:
    pool = [replace(record(9, seed, 1), images=(), question=f"{seed}?") for seed in range(4)]
    (found,) = with_public_shots([replace(record(1, 3, 1), images=())], pool, 2, seed=0)
    assert len(found.history) == 2 and not found.images


def test_a_federation_on_this_machine_gets_them(tmp_path: Path) -> None:
    keys = ["data.source=phantom", "data.train_patients=30", "data.test_patients=20", "curriculum.patience=1"]
    prepared = write_data(load_experiment("demo", [*keys, "data.shots=2"]), tmp_path / "run")
    validation = load_manifest(tmp_path / "run" / "validation")
    for manifest in (prepared.public, validation, *prepared.sites.values()):
        assert all(len(item.images) == 3 and len(item.history) == 2 for item in manifest.examples)
    assert "2 public examples stand before each question" in prepared.notes
    whole = write_data(load_experiment("demo", keys), tmp_path / "other")
    assert len(load_manifest(tmp_path / "other" / "validation").examples) > len(validation.examples)
    assert len(whole.public.examples) == len(prepared.public.examples)
