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
| is the difference of two models real  | `difference`: the same draw for both, and whether the interval holds 0 (`real`);     |
|                                       | `mcnemar`: exact, two-sided, on the items that one alone gets right (McNemar, 1947)   |
| all values are equal                  | an interval of no width; where no item tells two models apart, p is 1                |
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from fedmed.errors import DataError
from fedmed.metrics import sums
from fedmed.metrics.sums import LEVEL, MEAN, RESAMPLES, Estimate


def interval(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, float]:
    """(low, high) of the mean of `values`; fedmed.metrics.sums does the same for scores that are no means.

    Args:
        values: [N] one score an item; groups: [N] whose item it is.
        level: share of the resampled means inside, such as 0.95.

    Raises:
        DataError: no values, or another number of groups.
    """
    found = sums.estimate(_means(values), groups, MEAN, seed=seed, resamples=resamples, level=level)
    return float(found.low or 0.0), float(found.high or 0.0)


def difference(
    first: Sequence[float],
    second: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Mean of the second model's values less the first one's, on the same items. Args and Raises: as `interval`."""
    means = _means(first), _means(second)
    return sums.difference(*means, groups, MEAN, seed=seed, resamples=resamples, level=level)


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


def _means(values: Sequence[float]) -> list[sums.Sums]:
    return [(float(value), 1.0) for value in values]
