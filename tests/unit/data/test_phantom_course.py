"""The phantoms' course: every task of a recipe about the same patients, and the same truth in all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.runs.prepare import write_data
from fedmed.config import load_experiment
from fedmed.data.manifest import write_manifest
from fedmed.data.phantom_course import CHOICES, course_examples
from fedmed.errors import DataError


def test_a_patients_records_agree() -> None:
    examples = list(course_examples(40, seed=1, split="train"))
    by_patient = [examples[start : start + 4] for start in range(0, len(examples), 4)]
    for caption, instruct, choice, vqa in by_patient:
        assert len({item.patient for item in (caption, instruct, choice, vqa)}) == 1
        assert [item.task for item in (caption, instruct, choice, vqa)] == ["caption", "instruct", "choice", "vqa"]
        found = vqa.answer == "yes"
        assert ("No pleural effusion" in caption.answer) is not found
        assert instruct.history[0].answer == vqa.answer
        assert (instruct.answer == "none") is not found
        assert (choice.answer == "no effusion") is not found
        assert instruct.answer in (*choice.answer.split(), "none", "both")
    assert {item.answer for item in examples if item.task == "choice"} == set(CHOICES)


def test_it_is_the_same_every_time_and_splits_share_no_phantom(tmp_path: Path) -> None:
    assert list(course_examples(5, 1, split="test")) == list(course_examples(5, 1, split="test"))
    images = {
        split: {item.images[0].data for item in course_examples(20, 1, split=split)} for split in ("train", "test")
    }
    assert not images["train"] & images["test"]
    assert write_manifest(tmp_path / "site", course_examples(5, 1, split="train")).num_patients == 5


def test_only_the_tasks_that_are_scored_are_public(tmp_path: Path) -> None:
    keys = ["data.source=phantom_course", "data.train_patients=30", "data.test_patients=10"]
    judged = ["evaluation.tasks=[choice]", "curriculum.patience=1"]
    prepared = write_data(load_experiment("demo", [*keys, *judged]), tmp_path / "run")
    assert {item.task for item in prepared.public.examples} == {"choice"}
    assert (tmp_path / "run" / "validation" / "manifest.jsonl").exists()
    assert len(prepared.sites["north"].examples) == 4 * prepared.sites["north"].num_patients
    with pytest.raises(DataError, match=r"evaluation\.tasks=\['report'\]: phantom_course has no public example"):
        write_data(load_experiment("demo", [*keys, "evaluation.tasks=[report]"]), tmp_path / "other")


def test_a_source_without_a_validation_split_cannot_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aggregator.runs import prepare

    real = prepare.load_source

    def without_val(*arguments: object) -> object:
        from dataclasses import replace

        return replace(real(*arguments), val=())  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "load_source", without_val)
    keys = ["data.source=phantom_course", "data.train_patients=30", "data.test_patients=10"]
    with pytest.raises(DataError, match="has no validation split, and the run is judged by one"):
        write_data(load_experiment("demo", [*keys, "curriculum.patience=1"]), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["tasks=[tool]"],
            r"the run: curriculum\.tasks=\['tool'\], sources=\[\]: phantom_course has no record of them",
        ),
        (["sources=[phantom]"], r"sources=\['phantom'\]: phantom_course has no record of them to train on"),
        (["tasks=[caption]", "start_difficulty=1"], r"difficulty \d, and the first round takes none above .*=1$"),
        (
            ["metric=open_f1", "patience=2"],
            r"metric=open_f1: phantom_course has no open question to validate on",
        ),
    ],
)
def test_a_stage_that_nothing_can_come_of_is_refused(tmp_path: Path, overrides: list[str], expected: str) -> None:
    keys = ["data.source=phantom_course", "data.train_patients=30", "data.test_patients=10", "evaluation.tasks=[vqa]"]
    with pytest.raises(DataError, match=expected):
        write_data(load_experiment("demo", [*keys, *(f"curriculum.{item}" for item in overrides)]), tmp_path / "run")
    assert not (tmp_path / "run" / "sites").exists()


def test_a_stage_of_one_round_takes_all_difficulties(tmp_path: Path) -> None:
    keys = ["data.source=phantom_course", "data.train_patients=30", "data.test_patients=10", "training.rounds=1"]
    curriculum = ["curriculum.tasks=[caption]", "curriculum.start_difficulty=1"]
    assert write_data(load_experiment("demo", [*keys, *curriculum]), tmp_path / "run").sites
