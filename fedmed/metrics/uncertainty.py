"""How sure a score is, and whether two models differ: bootstrap intervals and paired tests. Pure; the same seed, the same numbers.

    >>> low, high = interval([1.0] * 80 + [0.0] * 20)
    >>> 0.70 < low < 0.8 < high < 0.90
    True
    >>> round(mcnemar([True] * 8 + [False] * 2, [False] * 8 + [True] * 2), 4)
    0.1094

| question                              | answer                                                                               |
| ------------------------------------- | ------------------------------------------------------------------------------------ |
| what is drawn                         | whole groups with replacement (patients or images): items of one are not independent; |
|                                       | without groups each item is its own                                                  |
| which interval                        | percentiles of the resampled means (Efron, 1979); for fewer than some 30 groups too   |
|                                       | narrow                                                                               |
| is the difference of two models real  | `difference`: the same draw for both, and whether the interval holds 0;              |
|                                       | `mcnemar`: exact, two-sided, on the items that one alone gets right (McNemar, 1947)   |
| all values are equal                  | an interval of no width; where no item tells two models apart, p is 1                |
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from fedmed.errors import DataError

RESAMPLES, LEVEL = 2000, 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of the second model's values less the first one's, with its interval.

    Attributes:
        real: whether the interval leaves out 0.
    """

    mean: float
    low: float
    high: float

    @property
    def real(self) -> bool:
        return self.low > 0 or self.high < 0


def interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, float]:
    """(low, high) of the mean of `values`.

    Args:
        values: [N] one score an item; groups: [N] whose item it is.
        level: share of the resampled means inside, such as 0.95.

    Raises:
        DataError: no values, or another number of groups.
    """
    sums = _by_group(values, groups)
    draws = random.Random(seed)  # noqa: S311  statistics, and repeatable; nothing is hidden
    means = sorted(_resampled_mean(sums, draws) for _ in range(resamples))
    cut = (1 - level) / 2
    return _quantile(means, cut), _quantile(means, 1 - cut)


def difference(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Difference:
    """Whether the second model is better than the first on the same items. Args and Raises: as `interval`."""
    if len(first) != len(second):
        raise DataError(f"{len(first)} and {len(second)} values, expected both models on the same items")
    change = [new - old for old, new in zip(first, second, strict=True)]
    low, high = interval(change, groups, seed=seed, resamples=resamples, level=level)
    return Difference(math.fsum(change) / len(change), low, high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The probability of so uneven a split of the items that one model alone gets right, were both equally good.

    Raises:
        DataError: not the same number of items.
    """
    if len(first) != len(second):
        raise DataError(f"{len(first)} and {len(second)} values, expected both models on the same items")
    only_first = sum(old and not new for old, new in zip(first, second, strict=True))
    only_second = sum(new and not old for old, new in zip(first, second, strict=True))
    total, fewer = only_first + only_second, min(only_first, only_second)
    # Whole numbers up to the last step: 2^total is beyond every float for some thousand items.
    tail = 2 * sum(math.comb(total, count) for count in range(fewer + 1))
    return min(1.0, tail / 2**total)


def _by_group(values: Sequence[float], groups: Sequence[Hashable] | None) -> list[tuple[float, int]]:
    """(sum, count) of each group."""
    if not values:
        raise DataError("there is nothing to score: 0 values")
    if groups is None:
        return [(float(value), 1) for value in values]
    if len(groups) != len(values):
        raise DataError(f"{len(groups)} groups for {len(values)} values, expected one each")
    found: dict[Hashable, tuple[float, int]] = {}
    for value, group in zip(values, groups, strict=True):
        total, count = found.get(group, (0.0, 0))
        found[group] = total + value, count + 1
    return list(found.values())


def _resampled_mean(sums: Sequence[tuple[float, int]], draws: random.Random) -> float:
    drawn = draws.choices(sums, k=len(sums))
    return math.fsum(total for total, _ in drawn) / sum(count for _, count in drawn)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two neighbours, linearly."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
