"""Which choice an answer names."""

from __future__ import annotations

import pytest

from fedmed.metrics.choices import choice_accuracy, choice_of

ORGANS = ["Heart", "Left lung", "Liver", "Liver"]


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("B", 1),
        (" b. ", 1),
        ("(B)", 1),
        ("B: left lung", 1),
        ("B) it is opaque", 1),
        ("left  LUNG.", 1),
        ("B: Heart", None),
        ("Liver", None),
        ("C", 2),
        ("E", None),
        ("not B", None),
        ("lung", None),
        ("", None),
    ],
)
def test_a_choice_is_named_or_none_is(answer: str, place: int | None) -> None:
    assert choice_of(answer, ORGANS) == place


def test_a_choice_whose_text_is_a_letter() -> None:
    assert choice_of("B", ["B", "A"]) == 0
    assert choice_of("C", ["B", "A"]) is None


def test_accuracy() -> None:
    assert choice_accuracy(["A", "lung", "heart"], [ORGANS] * 3, [0, 1, 0]) == pytest.approx(2 / 3)
    assert choice_accuracy([], [], []) is None
    with pytest.raises(ValueError, match="shorter"):
        choice_accuracy(["A"], [ORGANS], [])
