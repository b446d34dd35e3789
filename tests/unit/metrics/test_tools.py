"""Scores of tool dialogues, by hand-counted cases."""

from __future__ import annotations

from typing import Any

import pytest

from fedmed.errors import DataError
from fedmed.metrics.tools import tool_scores
from fedmed.tools import Action, Turn, write_turn


def call(name: str, **params: Any) -> str:
    return write_turn(Turn("t", (Action(name, params),), "wait"))


def answer(text: str) -> str:
    return write_turn(Turn("t", (), text))


def test_every_score_by_hand() -> None:
    found = call("grounding", prompts=["nodule", "heart"])
    truths = [found, found, found, call("report"), answer("left lung"), answer("yes"), answer("no")]
    given = [
        call(
            "grounding dino", prompts=["Heart.", "nodule"], image="<imagepath>"
        ),  # equal but for order, case, placeholder
        call("grounding", prompts="nodule"),  # right tool, wrong arguments
        call("retrieval", query="nodule"),  # another tool, valid arguments
        "the lungs are clear",  # no turn
        answer("right lung"),
        call("magic"),  # a call where an answer is due
        answer("No."),
    ]
    scores = tool_scores(given, truths)
    assert (scores.num_items, scores.num_called, scores.num_calls, scores.num_answers) == (7, 4, 4, 3)
    assert scores.readable == pytest.approx(6 / 7)
    assert scores.tool_accuracy == pytest.approx(4 / 7)
    assert scores.arguments_valid == pytest.approx(2 / 4)
    assert scores.arguments_equal == pytest.approx(1 / 4)
    assert scores.answer_exact == pytest.approx(1 / 3)
    assert scores.answer_f1 == pytest.approx((0.5 + 0 + 1) / 3)
    assert scores.confusion == {
        "grounding": {"grounding": 2, "retrieval": 1},
        "report": {"unreadable": 1},
        "none": {"none": 2, "unknown": 1},
    }


def test_arguments_are_equal_as_answers_are() -> None:
    boxes = call("segmentation", boxes=[[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.6, 0.6]])
    same = call("MedSAM", boxes=[[0.5, 0.5, 0.6, 0.6], [0.101, 0.2, 0.3, 0.4]])
    turned = call("MedSAM", boxes=[[0.2, 0.1, 0.3, 0.4], [0.5, 0.5, 0.6, 0.6]])
    scores = [tool_scores([given], [boxes]).arguments_equal for given in (boxes, same, turned)]
    assert scores == [1.0, 1.0, 0.0]
    numbers = [call("magic", a=value) for value in (1, 1.0, 10**400, 2)]
    assert [tool_scores([given], numbers[:1]).arguments_equal for given in numbers] == [1.0, 1.0, 0.0, 0.0]
    assert tool_scores([call("Magic")], [call("magic ")]).arguments_equal == 1.0
    assert tool_scores([call("magic")], [call("other")]).arguments_equal == 0.0


def test_two_tools_of_one_turn_are_one_choice() -> None:
    both = write_turn(Turn("", (Action("report"), Action("BiomedCLIP")), ""))
    assert tool_scores([both], [both]).confusion == {"classification+report": {"classification+report": 1}}
    assert tool_scores([call("report")], [both]).tool_accuracy == 0.0


def test_a_share_of_nothing_is_none() -> None:
    scores = tool_scores([answer("yes")], [answer("yes")])
    assert (scores.arguments_valid, scores.arguments_equal, scores.answer_exact) == (None, None, 1.0)
    assert tool_scores(["?"], [call("report")]).answer_f1 is None


def test_what_cannot_be_scored_is_told() -> None:
    for given, truths in (([], []), ([answer("a")], [])):
        with pytest.raises(DataError, match="expected one each"):
            tool_scores(given, truths)
    with pytest.raises(DataError, match="true turn 2 is none"):
        tool_scores(["", ""], [answer("a"), "yes"])
