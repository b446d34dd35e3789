"""Intervals that hold what they should as often as they say, and tests of differences against SciPy."""

from __future__ import annotations

import random

import pytest
from scipy.stats import binomtest

from fedmed.errors import DataError
from fedmed.metrics.uncertainty import difference, interval, mcnemar


def coins(count: int, share: float, seed: int) -> list[float]:
    draws = random.Random(seed)
    return [float(draws.random() < share) for _ in range(count)]


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        low, high = interval(coins(100, 0.7, seed), seed=seed, resamples=400)
        held += low <= 0.7 <= high
    assert 178 <= held <= 200  # 190 expected, binomial with a deviation of 3


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [value + place / 7 for place, value in enumerate(coins(50, 0.5, 1))]
    assert interval(values, seed=3) == interval(values, seed=3) != interval(values, seed=4)
    assert interval([1.0] * 9) == (1.0, 1.0)


def test_items_of_one_patient_are_drawn_together() -> None:
    """Ten items of each of twenty patients, all equal: as sure as twenty items are, not as two hundred."""
    patients = coins(20, 0.5, 2)
    values, groups = [value for value in patients for _ in range(10)], [place for place in range(20) for _ in range(10)]
    assert interval(values, groups, seed=1) == pytest.approx(interval(patients, seed=1))
    low, high = interval(values, seed=1)
    grouped_low, grouped_high = interval(values, groups, seed=1)
    assert grouped_high - grouped_low > 2 * (high - low)


def test_a_difference_is_real_or_not() -> None:
    first = coins(400, 0.6, 5)
    better = [max(value, coin) for value, coin in zip(first, coins(400, 0.3, 6), strict=True)]
    assert difference(first, better).real
    assert difference(first, better).value == pytest.approx((sum(better) - sum(first)) / 400)
    swapped = difference(better, first)
    assert swapped.real and swapped.high is not None and swapped.high < 0
    assert not difference(first, first).real


@pytest.mark.parametrize("seed", range(20))
def test_mcnemar_is_the_exact_binomial_test(seed: int) -> None:
    first, second = ([bool(value) for value in coins(200, 0.5 + 0.01 * seed, seed + part)] for part in (0, 99))
    pairs = list(zip(first, second, strict=True))
    only = [sum(old and not new for old, new in pairs), sum(new and not old for old, new in pairs)]
    known = binomtest(min(only), sum(only), 0.5).pvalue
    assert mcnemar(first, second) == pytest.approx(known, rel=1e-6)


def test_mcnemar_at_the_edges() -> None:
    assert mcnemar([True], [True]) == mcnemar([], []) == 1.0
    assert mcnemar([True] * 5000, [False] * 5000) < 1e-300


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(DataError, match="0 values"):
        interval([])
    with pytest.raises(DataError, match="1 groups for 2 values"):
        interval([1.0, 0.0], ["a"])
    for function in (difference, mcnemar):
        with pytest.raises(DataError, match="1 and 2 values"):
            function([True], [True, False])
