"""Scores as sums over items: an item gives a few numbers, numbers add up, and the score is a function of the sums. Pure.

    >>> estimate([(1.0, 1.0), (0.0, 1.0)], ["p1", "p2"], MEAN).value
    0.5
    >>> F1.value((2.0, 4.0, 4.0))                  # both, said, true
    0.5

Means and pooled scores (BLEU, F1 over findings, a published accuracy that leaves items out) then have one bootstrap: whole
patients are drawn, their sums added, the score computed anew. Sums of several hospitals add up as well.

| case                                              | what comes of it                                        |
| ------------------------------------------------- | ------------------------------------------------------- |
| a score that the sums do not define (F1 of nothing) | None; resamples where it is so are left out             |
| all patients are the same                         | an interval of no width                                 |
| two models                                        | the same patients are drawn for both                    |
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import mul

from fedmed.errors import DataError

RESAMPLES, LEVEL = 2000, 0.95
Sums = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """How sums make a score. `value`: of the sums, None where they define none."""

    name: str
    value: Callable[[Sequence[float]], float | None]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score, or a difference of two, with its interval. `value`, `low`, `high`: None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def real(self) -> bool:
        """Whether the interval leaves out 0: what makes a difference worth the name."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def _ratio(sums: Sequence[float]) -> float | None:
    return sums[0] / sums[1] if sums[1] else None


# (sum, count); a published ratio that is 0 where nothing was counted; (both, said, true).
MEAN = Kind("mean", _ratio)
RATIO_OR_ZERO = Kind("ratio", lambda sums: _ratio(sums) or 0.0)
F1 = Kind("f1", lambda sums: 2 * sums[0] / (sums[1] + sums[2]) if sums[1] + sums[2] else None)


def estimate(
    parts: Sequence[Sums],
    groups: Sequence[Hashable] | None,
    kind: Kind,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """The score of all items with its percentile interval (Efron, 1979).

    Args:
        parts: [N] what each item gives; groups: [N] whose item it is, None: each its own.
        level: share of the resampled scores inside, such as 0.95.

    Raises:
        DataError: no items, or another number of groups.
    """
    columns = _columns(parts, groups)
    values = [kind.value(sums) for sums in _resampled(columns, seed, resamples)]
    return _with_interval(kind.value([math.fsum(column) for column in columns]), values, level)


def difference(
    first: Sequence[Sums],
    second: Sequence[Sums],
    groups: Sequence[Hashable] | None,
    kind: Kind,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """The second's score less the first's, on the same items. Args and Raises: as `estimate`."""
    if len(first) != len(second):
        raise DataError(f"{len(first)} and {len(second)} values, expected both models on the same items")
    columns, width = _columns([old + new for old, new in zip(first, second, strict=True)], groups), len(first[0])

    def change(sums: Sequence[float]) -> float | None:
        old, new = kind.value(sums[:width]), kind.value(sums[width:])
        return None if old is None or new is None else new - old

    values = [change(sums) for sums in _resampled(columns, seed, resamples)]
    return _with_interval(change([math.fsum(column) for column in columns]), values, level)


def _columns(parts: Sequence[Sums], groups: Sequence[Hashable] | None) -> list[list[float]]:
    """Of each of the numbers, its sum in every group."""
    if not parts:
        raise DataError("there is nothing to score: 0 values")
    if groups is not None and len(groups) != len(parts):
        raise DataError(f"{len(groups)} groups for {len(parts)} values, expected one each")
    places: dict[Hashable, int] = {}
    owners = [places.setdefault(group, len(places)) for group in (groups if groups is not None else range(len(parts)))]
    columns = [[0.0] * len(places) for _ in parts[0]]
    for owner, part in zip(owners, parts, strict=True):
        for column, number in zip(columns, part, strict=True):
            column[owner] += number
    return columns


def _resampled(columns: Sequence[Sequence[float]], seed: int, resamples: int) -> Iterator[list[float]]:
    for times in _draws(len(columns[0]), seed, resamples):
        yield [sum(map(mul, column, times)) for column in columns]


@lru_cache(maxsize=16)
def _draws(count: int, seed: int, resamples: int) -> tuple[bytes, ...]:
    """How often each of `count` groups is drawn, `resamples` times over; many scores share a draw, which is most of the work."""
    draws = random.Random(seed)  # noqa: S311  statistics, and repeatable; nothing is hidden
    found = []
    for _ in range(resamples):
        drawn = Counter(draws.choices(range(count), k=count))
        found.append(bytes(min(255, drawn[place]) for place in range(count)))
    return tuple(found)


def _with_interval(value: float | None, resampled: Sequence[float | None], level: float) -> Estimate:
    known = sorted(number for number in resampled if number is not None)
    if value is None or not known:
        return Estimate(value, None, None)
    cut = (1 - level) / 2
    return Estimate(value, _quantile(known, cut), _quantile(known, 1 - cut))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two neighbours, linearly."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
