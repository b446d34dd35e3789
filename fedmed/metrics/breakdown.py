"""Scores by kind of question: score, interval and number of items of each group. Pure.

    >>> items = [Scored("p1", {"organ": "chest"}, {"right": (1.0, 1.0)}), Scored("p2", {"organ": "brain"}, {"right": (0.0, 1.0)})]
    >>> [(row.field, row.value, row.estimate) for row in breakdown(items, ["organ"])]
    [('', '', 0.5), ('organ', 'brain', 0.0), ('organ', 'chest', 1.0)]

| what happens                            | what comes of it                                                           |
| --------------------------------------- | -------------------------------------------------------------------------- |
| a score that an item does not have      | the item is not in that score's rows: an open question has no choice score |
| an item without the field               | in a row of its own, value ""                                              |
| a group of one patient                  | an interval of no width, which says nothing: look at `patients`            |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedmed.metrics.sums import MEAN, RESAMPLES, Kind, Sums, estimate


@dataclass(frozen=True, slots=True)
class Scored:
    """One answered question.

    Attributes:
        patient: whose it is; only to draw a patient's items together.
        attributes: field -> value, such as organ, modality, answer_type, site.
        scores: score -> what the item gives to it: (value, 1) for a mean. See fedmed.metrics.sums.
    """

    patient: str = field(repr=False)
    attributes: Mapping[str, str] = field(repr=False)
    scores: Mapping[str, Sums]


@dataclass(frozen=True, slots=True)
class Row:
    """One score of one group; field and value are empty for all items together. `low`, `high`: the 95 % interval.

    `estimate` is None where the group's items define no such score.
    """

    field: str
    value: str
    score: str
    estimate: float | None
    low: float | None
    high: float | None
    items: int
    patients: int


def breakdown(
    items: Sequence[Scored],
    fields: Sequence[str],
    kind_of: Callable[[str], Kind] = lambda score: MEAN,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Row]:
    """All items together, then each value of each field in order; of each group its scores by name.

    Args:
        kind_of: how a score's sums make it.
    """
    rows = _rows("", "", items, kind_of, seed, resamples)
    for name in fields:
        for value in sorted({item.attributes.get(name, "") for item in items}):
            group = [item for item in items if item.attributes.get(name, "") == value]
            rows += _rows(name, value, group, kind_of, seed, resamples)
    return rows


def _rows(
    name: str, value: str, items: Sequence[Scored], kind_of: Callable[[str], Kind], seed: int, resamples: int
) -> list[Row]:
    rows = []
    for score in sorted({score for item in items for score in item.scores}):
        having = [item for item in items if score in item.scores]
        parts, patients = [item.scores[score] for item in having], [item.patient for item in having]
        found = estimate(parts, patients, kind_of(score), seed=seed, resamples=resamples)
        rows.append(Row(name, value, score, found.value, found.low, found.high, len(having), len(set(patients))))
    return rows
