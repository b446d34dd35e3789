"""Each held-out patient's scores: items by kind, one mean a patient, findings pooled, and who is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_architectures import gpt2_mapper_base
from helpers_training import record

from fedmed.data.collate import Collator, TooLongError
from fedmed.data.manifest import Manifest, write_manifest
from fedmed.data.schema import Example
from fedmed.errors import FederationError
from fedmed.privacy.patient_scores import SCORES, noisy_scores, told
from fedmed.privacy.random import InsecureSeededRandom
from fedmed.training import held_out
from fedmed.training.device_memory import PhysicalBatch
from fedmed.training.held_out import MOST_FINDINGS, patient_scores, score_patients

SICK = "There is cardiomegaly and a pleural effusion."


def item(answer: str, answer_type: Any = "open", task: Any = "vqa", patient: str = "p1", **more: Any) -> Example:
    return Example(patient, (), "A question?", answer, answer_type, task, "test", **more)


def test_items_count_by_their_kind_and_a_patient_once() -> None:
    examples = [
        item("yes", "closed"),
        item("no", "closed"),
        item("left upper lobe"),
        item("Heart", choices=("Heart", "Liver")),
    ]
    found = patient_scores(examples, ["yes", "yes", "left lobe", "A"])
    assert found.weights == {"all": 1.0, "closed": 1.0, "open": 1.0, "choice": 1.0}
    assert found.values == pytest.approx(
        {"exact_match": 1 / 4, "closed_accuracy": 1 / 2, "open_recall": 2 / 3, "open_f1": 0.8, "choice_accuracy": 1.0}
    )


def test_a_hundred_items_of_one_patient_weigh_as_much_as_one_of_another() -> None:
    many = patient_scores([item("yes", "closed")] * 100, ["no"] * 100)
    one = patient_scores([item("yes", "closed")], ["yes"])
    sums = noisy_scores(("exact_match",), [many, one], 0.0, InsecureSeededRandom(0))
    assert (sums.sums, sums.weights) == ((1.0,), (2.0,))


def test_findings_are_pooled_over_patients_and_a_report_without_any_has_no_weight() -> None:
    patients = [
        patient_scores([item(SICK, task="report")], [SICK]),  # both of two
        patient_scores(
            [item(SICK, task="report")] * 2, ["Cardiomegaly.", "There is cardiomegaly."]
        ),  # one of one, of two
        patient_scores([item("The picture is rotated.", task="caption")], ["A rotated picture."]),
    ]
    assert [patient.weights["findings"] for patient in patients] == [2 / MOST_FINDINGS, 1.5 / MOST_FINDINGS, 0.0]
    sums = noisy_scores(("finding_f1",), patients, 0.0, InsecureSeededRandom(0))
    expected = 2 * (2 + 1) / ((2 + 2) + (1 + 2))  # of the patients' mean counts: both, said, true
    assert told(("finding_f1",), "finding_f1", [sums], 0.0).value == pytest.approx(expected)
    assert "closed_accuracy" not in patients[0].values and "open" not in patients[0].weights


def test_many_findings_are_bounded() -> None:
    text = "Cardiomegaly, edema, pneumonia, atelectasis, pneumothorax and a pleural effusion."
    found = patient_scores([item(text, task="report")], [text])
    assert (found.weights["findings"], found.values["finding_f1"]) == (1.0, 1.0)


class Model:
    """Has positions for more than is asked here."""

    class config:
        @staticmethod
        def get_text_config() -> Any:
            return SimpleNamespace(max_position_embeddings=4096)


class Three:
    """A manifest of three patients with two items each, and no pictures."""

    def __init__(self) -> None:
        self.examples = tuple(item("yes", "closed", patient=f"p{number // 2}") for number in range(6))
        self.patients = ((0, 1), (2, 3), (4, 5))

    def images(self, example: Example) -> list[Any]:
        return []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many were asked at a time; everybody answers yes, and four at a time are too many."""
    sizes: list[int] = []

    def answers(
        model: Any, processor: Any, examples: Sequence[Example], *args: Any, batch_size: int, **more: Any
    ) -> list[str]:
        if batch_size > 3:
            raise MemoryError
        sizes.append(len(examples))
        return ["yes"] * len(examples)

    monkeypatch.setattr(held_out, "generate_answers", answers)
    return sizes


def score(**changes: Any) -> list[Any]:
    manifest: Any = Three()
    settings = {"batch": PhysicalBatch(2), "max_new_tokens": 4, **changes}
    return score_patients(Model(), None, manifest, **settings)  # type: ignore[arg-type]


def test_every_patient_is_scored_and_the_withdrawn_are_not_even_asked(asked: list[int]) -> None:
    assert len(score()) == 3 and asked == [2, 2, 2]
    asked.clear()
    assert len(score(withdrawn=lambda: {1})) == 2 and sum(asked) == 4


def test_who_withdraws_meanwhile_is_left_out(asked: list[int]) -> None:
    said = iter([set(), {0, 2}])
    assert len(score(withdrawn=lambda: next(said))) == 1


def test_out_of_memory_it_goes_on_in_smaller_batches(asked: list[int]) -> None:
    assert len(score(batch=PhysicalBatch(8))) == 3 and sum(asked) == 6


def test_a_question_that_does_not_fit_is_answered_with_nothing(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation that failed would tell that somebody has such a question."""
    ask = held_out.generate_answers

    def fitting(model: Any, processor: Any, examples: Sequence[Example], *args: Any, **more: Any) -> list[str]:
        if any(example.question == "Long?" for example in examples):
            raise TooLongError("a prompt needs more tokens than there are")
        return ask(model, processor, examples, *args, **more)

    monkeypatch.setattr(held_out, "generate_answers", fitting)
    manifest: Any = Three()
    manifest.examples = tuple(
        replace(example, question="Long?") if place in (1, 4, 5) else example
        for place, example in enumerate(manifest.examples)
    )
    found = score_patients(Model(), None, manifest, batch=PhysicalBatch(3), max_new_tokens=4)  # type: ignore[arg-type]
    assert [patient.values["exact_match"] for patient in found] == [0.5, 1.0, 0.0]


def test_a_prompt_that_leaves_no_room_for_the_answer_is_answered_with_nothing(tmp_path: Path) -> None:
    """GPT-2 has a table of positions: beyond its end the evaluation broke, for a length of answers that the task chooses."""
    base = gpt2_mapper_base()
    collator = Collator(base.processor)
    asked, picture = replace(record(0, 1, 1), question="left"), record(0, 1, 1)
    site = write_manifest(tmp_path / "short", [picture])
    pictures = site.images(site.examples[0])
    while len(collator.encode(asked, pictures).prompt) < 509:
        asked = replace(asked, question=f"{asked.question} left")
    cohort = write_manifest(tmp_path / "site", [record(patient, patient, 1) for patient in (1, 2)] + [asked])
    found = score_patients(base.model, base.processor, cohort, batch=PhysicalBatch(4), max_new_tokens=8)
    assert [patient.weights["all"] for patient in found] == [1.0, 1.0, 1.0]
    assert found[0].values["exact_match"] == 0.0  # p00, the long one


def test_it_stops_when_told(asked: list[int]) -> None:
    with pytest.raises(FederationError, match="stopped"):
        score(should_stop=lambda: True)
    assert asked == []


def test_scores_and_kinds_are_those_of_a_central_evaluation() -> None:
    """fedmed.metrics.answers scores public sets: the same names mean the same items and the same numbers."""
    from fedmed.metrics.answers import answer_sums

    examples = [
        item("yes", "closed"),
        item("left upper lobe"),
        item("Heart", choices=("Heart", "Liver")),
        item("yes", "closed", choices=("yes", "no")),
        item(SICK, task="report"),
        item("yes", "closed", task="caption"),
        item("A list.", task="instruct"),
    ]
    given = ["no", "left lobe", "B", "A", "Cardiomegaly.", "yes", "The list."]
    for example, said, parts in zip(examples, given, answer_sums(examples, given), strict=True):
        one = patient_scores([example], [said])
        own = {name for name, group in SCORES.items() if one.weights.get(group, 0)}
        both, mine, true = parts.get("finding_f1", (0.0, 0.0, 0.0))
        assert own == {name for name in SCORES if name in parts and (name != "finding_f1" or mine + true)}
        for name in own - {"finding_f1"}:
            assert parts[name] == (one.values[name], 1.0)
        if "finding_f1" in own:
            assert one.values["finding_f1"] == 2 * both / (mine + true)


def test_the_stand_in_is_what_the_scores_use_of_a_manifest() -> None:
    assert {"examples", "patients", "images"} <= {*dir(Manifest), *Manifest.__dataclass_fields__}
