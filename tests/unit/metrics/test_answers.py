"""What each answer gives to each score, by task: hand-computed, and pooled as the published programs pool."""

from __future__ import annotations

import random

import pytest

from fedmed.data.schema import AnswerType, Example, Task
from fedmed.errors import DataError
from fedmed.metrics import legacy
from fedmed.metrics.answers import CORRECTED, LEGACY, answer_sums, is_right, kind_of, main_score
from fedmed.metrics.findings import finding_f1
from fedmed.metrics.text import corpus_bleu, text_scores
from fedmed.tools import Action, Turn, write_turn


def item(answer: str, kind: AnswerType = "open", task: Task = "vqa", choices: tuple[str, ...] = ()) -> Example:
    return Example("p", (), "What?", answer, kind, task, "made", choices=choices)


def total(examples: list[Example], answers: list[str]) -> dict[str, float | None]:
    parts = answer_sums(examples, answers)
    names = {name for part in parts for name in part}
    return {
        name: kind_of(name).value(
            [sum(column) for column in zip(*(part[name] for part in parts if name in part), strict=True)]
        )
        for name in names
    }


def test_closed_questions() -> None:
    truths, answers = ["yes", "yes", "no", "left"], ["no", "Yes.", "It is abnormal", "left"]
    found = total([item(truth, "closed") for truth in truths], answers)
    assert found["closed_accuracy"] == found["exact_match"] == 0.5
    # The wrong "no" is not counted; "abnormal" holds "no" and counts as right; "left" holds neither and counts as wrong.
    assert found["legacy_llava_med_closed"] == pytest.approx(2 / 3)
    assert found["legacy_llava_med_closed"] == legacy.llava_med_closed(zip(answers, truths, strict=True))
    assert found["legacy_prefix_accuracy"] == 0.25  # "Yes." is not "yes" there
    assert "open_f1" not in found and "choice_accuracy" not in found


def test_the_published_closed_accuracy_is_pooled_as_published() -> None:
    rng = random.Random(1)
    words = ["yes", "no", "abnormal", "left", "", "no it is not", "eyes"]
    pairs = [(rng.choice(words), rng.choice(["yes", "no", "left"])) for _ in range(300)]
    found = total([item(truth, "closed") for _, truth in pairs], [answer for answer, _ in pairs])
    assert found["legacy_llava_med_closed"] == pytest.approx(legacy.llava_med_closed(pairs))


def test_open_questions() -> None:
    found = total([item("left lung"), item("mass")], ["in the left left lung", "nodule"])
    assert found["open_recall"] == found["legacy_llava_med_recall"] == 0.5
    assert found["open_f1"] == pytest.approx(2 * 2 / (5 + 2) / 2)
    f1, precision, _ = legacy.llava_med_f1("in the left left lung", "left lung")
    assert found["legacy_llava_med_f1"] == pytest.approx(f1 / 2) and precision == pytest.approx(3 / 4)
    assert found["bleu1"] == pytest.approx(
        corpus_bleu(["in the left left lung", "nodule"], [["left lung"], ["mass"]], 1)
    )
    assert found["legacy_llava_med_open_accuracy"] == 0.5  # "nodule" is near nothing: the first candidate, not "mass"
    assert found["legacy_prefix_bleu1"] == pytest.approx(
        (legacy.prefix_bleu1("in the left left lung", "left lung") + legacy.prefix_bleu1("nodule", "mass")) / 2
    )


def test_choices() -> None:
    examples = [item("left lung", "closed", "choice", ("liver", "left lung", "heart"))] * 3
    found = total(examples, ["B", "the heart it is not", ""])
    assert found["choice_accuracy"] == pytest.approx(1 / 3)
    assert found["legacy_pmc_vqa_choice"] == pytest.approx(1 / 3)
    assert found["legacy_pmc_vqa_letter"] == pytest.approx(1 / 3)
    assert found["legacy_pmc_vqa_last_character"] == 0.5  # of two: the published program ends at the empty one
    assert [is_right(examples[0], answer) for answer in ("B", "left lung", "left", "C")] == [True, True, False, False]


def test_reports_are_scored_as_the_pure_functions_do() -> None:
    truths = ["No pleural effusion. The heart is enlarged.", "The lungs are clear.", "There is a left nodule."]
    answers = ["Pleural effusion. The heart is enlarged.", "The lungs are clear.", ""]
    found = total([item(truth, task="report") for truth in truths], answers)
    known = text_scores(answers, [[truth] for truth in truths])
    for name in ("bleu1", "bleu2", "bleu3", "bleu4", "rouge1", "rouge2", "rougeL", "cider_d"):
        assert found[name] == pytest.approx(known[name], abs=1e-9), name
    agreement = finding_f1(zip(answers, truths, strict=True))
    assert (found["finding_f1"], found["finding_absent_f1"]) == (agreement.present, agreement.absent)
    assert found["finding_absent_f1"] == 0.0  # the effusion that is not there was said to be there
    assert {"rouge_l_med", "rouge_w_med", "rouge_s_med", "legacy_coco_bleu4", "legacy_coco_rouge_l"} <= set(found)


def test_tool_turns() -> None:
    truth = write_turn(Turn("t", (Action("report"),), "v"))
    found = total([item(truth, task="tool")] * 2, [truth, "no turn"])
    assert (found["tool_readable"], found["tool_accuracy"]) == (0.5, 0.5)
    assert "tool_accuracy" not in answer_sums([item("plain words", task="tool")], ["x"])[0]


def test_every_published_score_has_one_to_report_beside_it() -> None:
    examples = [
        item("yes", "closed"),
        item("left lung"),
        item("liver", "closed", "choice", ("liver", "heart")),
        item("The lungs are clear.", task="report"),
    ]
    names = set(total(examples, ["yes", "lung", "A", "clear"]))
    assert {name for name in names if name.startswith(LEGACY)} == set(CORRECTED)
    assert set(CORRECTED.values()) <= names


def test_what_an_item_is_judged_by() -> None:
    parts = answer_sums(
        [
            item("yes", "closed"),
            item("left lung"),
            item("b", "closed", "choice", ("a", "b")),
            item("a b", task="caption"),
        ],
        ["yes", "left", "A", "a b"],
    )
    assert [main_score(part) for part in parts] == [
        ("closed_accuracy", 1.0),
        ("open_f1", pytest.approx(2 / 3)),
        ("choice_accuracy", 0.0),
        ("rougeL", 1.0),
    ]


def test_wrong_sizes_are_clear_errors() -> None:
    for examples, answers in (([], []), ([item("a")], [])):
        with pytest.raises(DataError, match="expected one each"):
            answer_sums(examples, answers)
