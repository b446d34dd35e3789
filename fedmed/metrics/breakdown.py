"""Scores by kind of question: mean, interval and number of items of each group. Pure.

    >>> items = [Scored("p1", {"organ": "chest"}, {"accuracy": 1.0}), Scored("p2", {"organ": "brain"}, {"accuracy": 0.0})]
    >>> [(row.field, row.value, row.mean) for row in breakdown(items, ["organ"])]
    [('', '', 0.5), ('organ', 'brain', 0.0), ('organ', 'chest', 1.0)]

| what happens                            | what comes of it                                                           |
| --------------------------------------- | -------------------------------------------------------------------------- |
| a score that an item does not have      | the item is not in that score's rows: an open question has no choice score |
| an item without the field               | in a row of its own, value ""                                              |
| a group of one patient                  | an interval of no width, which says nothing: look at `patients`            |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedmed.metrics.uncertainty import RESAMPLES, interval


@dataclass(frozen=True, slots=True)
class Scored:
    """One answered question.

    Attributes:
        patient: whose it is; only to draw a patient's items together.
        attributes: field -> value, such as organ, modality, answer_type, site.
        scores: score -> value.
    """

    patient: str = field(repr=False)
    attributes: Mapping[str, str] = field(repr=False)
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One score of one group; field and value are empty for all items together. `low`, `high`: the 95 % interval."""

    field: str
    value: str
    score: str
    mean: float
    low: float
    high: float
    items: int
    patients: int


def breakdown(
    items: Sequence[Scored], fields: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Row]:
    """All items together, then each value of each field in order; of each group its scores by name."""
    rows = _rows("", "", items, seed, resamples)
    for name in fields:
        for value in sorted({item.attributes.get(name, "") for item in items}):
            group = [item for item in items if item.attributes.get(name, "") == value]
            rows += _rows(name, value, group, seed, resamples)
    return rows


def _rows(name: str, value: str, items: Sequence[Scored], seed: int, resamples: int) -> list[Row]:
    rows = []
    for score in sorted({score for item in items for score in item.scores}):
        having = [item for item in items if score in item.scores]
        values, patients = [item.scores[score] for item in having], [item.patient for item in having]
        low, high = interval(values, patients, seed=seed, resamples=resamples)
        mean = math.fsum(values) / len(values)
        rows.append(Row(name, value, score, mean, low, high, len(values), len(set(patients))))
    return rows
