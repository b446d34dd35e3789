"""Scores by group."""

from __future__ import annotations

from fedmed.metrics.breakdown import Row, Scored, breakdown


def items() -> list[Scored]:
    return [
        Scored("p1", {"organ": "chest", "answer_type": "closed"}, {"accuracy": (1.0, 1.0)}),
        Scored("p1", {"organ": "chest", "answer_type": "open"}, {"accuracy": (0.0, 1.0), "open_f1": (0.5, 1.0)}),
        Scored("p2", {"organ": "brain", "answer_type": "open"}, {"accuracy": (1.0, 1.0), "open_f1": (1.0, 1.0)}),
        Scored("p3", {"answer_type": "closed"}, {"accuracy": (1.0, 1.0)}),
    ]


def test_each_value_of_each_field_has_its_row() -> None:
    rows = breakdown(items(), ["organ", "answer_type"], resamples=50)
    assert [(row.field, row.value, row.score, row.estimate, row.items, row.patients) for row in rows] == [
        ("", "", "accuracy", 0.75, 4, 3),
        ("", "", "open_f1", 0.75, 2, 2),
        ("organ", "", "accuracy", 1.0, 1, 1),
        ("organ", "brain", "accuracy", 1.0, 1, 1),
        ("organ", "brain", "open_f1", 1.0, 1, 1),
        ("organ", "chest", "accuracy", 0.5, 2, 1),
        ("organ", "chest", "open_f1", 0.5, 1, 1),
        ("answer_type", "closed", "accuracy", 1.0, 2, 2),
        ("answer_type", "open", "accuracy", 0.5, 2, 2),
        ("answer_type", "open", "open_f1", 0.75, 2, 2),
    ]
    assert all(row.low <= row.estimate <= row.high for row in rows)


def test_the_order_of_items_changes_no_mean() -> None:
    def without_interval(rows: list[Row]) -> list[tuple]:
        return [(row.field, row.value, row.score, row.estimate, row.items, row.patients) for row in rows]

    forth, back = breakdown(items(), ["organ"], resamples=20), breakdown(items()[::-1], ["organ"], resamples=20)
    assert without_interval(forth) == without_interval(back)


def test_no_patient_is_printed() -> None:
    assert "p1" not in repr(items()[0]) and "p1" not in repr(breakdown(items(), ["organ"], resamples=5))
