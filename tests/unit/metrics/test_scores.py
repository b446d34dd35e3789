"""Scores: hand-computed cases and the properties that a score must have."""

from __future__ import annotations

import json
import random

import pytest

from fedmed.data.schema import AnswerType, Example
from fedmed.errors import DataError
from fedmed.metrics.scores import (
    MIN_ASKED,
    Scores,
    exact_match,
    majority_accuracy,
    normalise_answer,
    score,
    token_f1,
    token_recall,
)


def item(answer: str, answer_type: AnswerType = "closed", question: str = "Is it?") -> Example:
    return Example("p", (), question, answer, answer_type, "vqa", "made")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Yes.\n", "yes"),
        ("X-ray, AP  view!", "x ray ap view"),
        ("3.5 cm", "3.5 cm"),
        ("-2 to 3", "-2 to 3"),
        ("grade 3-4", "grade 3 4"),
        ("> 50%", "> 50 %"),
        ("the left lung", "the left lung"),
        ("A", "a"),
        ("\uff39\uff25\uff33", "yes"),
        ("左肺", "左 肺"),
        ("T2加权像", "t2 加 权 像"),
        ("!?", "!?"),
        ("", ""),
    ],
)
def test_answers_are_compared_in_a_stated_form(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected
    assert normalise_answer(expected) == expected


@pytest.mark.parametrize(
    ("prediction", "truth", "same"),
    [
        ("Yes", "yes.", True),
        ("abnormal", "no", False),
        ("no", "abnormal", False),
        ("<5 mm", ">5 mm", False),
        ("35", "3.5", False),
        ("", "yes", False),
        ("!", "?", False),
    ],
)
def test_exact_match(prediction: str, truth: str, same: bool) -> None:
    assert exact_match(prediction, truth) is same


@pytest.mark.parametrize(
    ("prediction", "truth", "recall", "f1"),
    [
        ("left lung", "left lung", 1.0, 1.0),
        ("in the left lung", "left lung", 1.0, 2 * 0.5 / 1.5),
        ("left", "left lung", 0.5, 2 * 0.5 / 1.5),
        ("left left", "left", 1.0, 2 * 0.5 / 1.5),
        ("left", "left left", 0.5, 2 * 0.5 / 1.5),
        ("right", "left", 0.0, 0.0),
        ("", "left", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("left", "", 1.0, 0.0),
        ("图像显示左肺。", "左肺", 1.0, 0.5),  # both of its two, in an answer of six
        ("左肺", "右肺", 0.5, 0.5),
    ],
)
def test_token_scores_by_hand(prediction: str, truth: str, recall: float, f1: float) -> None:
    assert token_recall(prediction, truth) == pytest.approx(recall)
    assert token_f1(prediction, truth) == pytest.approx(f1)


def test_token_scores_are_bounded_symmetric_and_blind_to_order() -> None:
    rng = random.Random(0)
    words = ["left", "right", "lung", "no", "3.5", "the"]
    for _ in range(300):
        one, two = (rng.choices(words, k=rng.randint(1, 6)) for _ in range(2))
        a, b = " ".join(one), " ".join(two)
        assert 0 <= token_f1(a, b) <= 1
        assert token_f1(a, b) == token_f1(b, a) == token_f1(" ".join(reversed(one)), b)
        assert token_recall(f"{a} {b}", b) == 1.0
        assert exact_match(a, b) <= (token_f1(a, b) == 1.0)


def test_closed_and_open_items_are_scored_apart() -> None:
    examples = [item("yes"), item("no"), item("left lung", "open"), item("mass", "open")]
    scores = score(["Yes", "yes", "the left", "mass"], examples)
    assert scores == Scores(
        num_items=4,
        closed_accuracy=0.5,
        open_recall=0.75,
        open_f1=0.75,
        accuracy=0.5,
        majority_accuracy=0.5,
    )


def test_a_score_of_no_item_is_none_and_not_zero() -> None:
    assert score(["yes"], [item("yes")]).open_recall is None
    assert score(["left"], [item("left", "open")]).closed_accuracy is None


def test_majority_is_per_question_where_the_question_is_asked_often() -> None:
    often = [item("yes")] * MIN_ASKED + [item("no")] * 2
    other = [item("left", "open", "Which side?")] * MIN_ASKED
    assert majority_accuracy(often + other) == pytest.approx((2 * MIN_ASKED) / (2 * MIN_ASKED + 2))


def test_majority_of_rare_questions_is_pooled_and_not_perfect() -> None:
    rare = [item("yes" if number % 4 else "no", question=f"Question {number}?") for number in range(40)]
    assert majority_accuracy(rare) == 0.75


def test_no_constant_answer_beats_the_majority_of_one_question() -> None:
    rng = random.Random(0)
    examples = [item(rng.choice(["yes", "no", "maybe"])) for _ in range(50)]
    best = max(score([answer] * 50, examples).accuracy for answer in ("yes", "no", "maybe"))
    assert majority_accuracy(examples) == pytest.approx(best)


def test_wrong_sizes_are_clear_errors() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        score([], [])
    with pytest.raises(DataError, match="nothing to score"):
        majority_accuracy([])
    with pytest.raises(DataError, match="1 predictions for 2 examples"):
        score(["yes"], [item("yes"), item("no")])


def test_scores_travel_through_json() -> None:
    scores = score(["yes"], [item("yes")])
    assert Scores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores
    with pytest.raises(DataError, match="expected"):
        Scores.from_dict({"accuracy": 1.0})
