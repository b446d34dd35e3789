"""The bounds of an audit: known values, and that they stay below the truth as often as they promise."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from fedmed.errors import PrivacyError
from fedmed.privacy.accounting import PrivacyEvent, epsilon
from fedmed.privacy.audit_bound import epsilon_from_guesses, epsilon_if_gaussian, lower_bound_of_mean


def test_all_right_has_a_closed_form() -> None:
    share = 0.05 ** (1 / 200)
    expected = math.log(share / (1 - share))
    assert epsilon_from_guesses(200, 200, 200, 0.0, 0.05) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("made", "right"), [(10, 9), (1000, 700), (20000, 15000)])
def test_without_delta_it_is_the_exact_binomial_test(made: int, right: int) -> None:
    found = epsilon_from_guesses(made, made, right, 0.0, 0.05)
    exact = stats.binomtest(right, made).proportion_ci(0.9, "exact").low  # one-sided at 0.05
    assert found == pytest.approx(math.log(exact / (1 - exact)), rel=1e-5)


def test_delta_lowers_the_bound_with_every_coin_thrown() -> None:
    def bound(bits: int, delta: float) -> float:
        return epsilon_from_guesses(bits, 100, 99, delta, 0.05)

    assert bound(100, 0.0) == bound(10_000, 0.0)  # without delta, coins that nobody guesses change nothing
    assert bound(100, 0.0) > bound(100, 1e-5) > bound(10_000, 1e-5) > bound(10_000, 1e-4)
    assert bound(10_000, 1e-5) == pytest.approx(bound(100, 1e-3))


@pytest.mark.parametrize(("made", "right"), [(0, 0), (100, 50), (100, 0), (100, 57)])
def test_guesses_no_better_than_a_coin_refute_nothing(made: int, right: int) -> None:
    assert epsilon_from_guesses(100, made, right, 1e-5, 0.05) == 0.0


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(PrivacyError, match="right=3"):
        epsilon_from_guesses(2, 2, 3, 1e-5, 0.05)


def test_randomised_response_is_rarely_overestimated() -> None:
    """The worst mechanism of its epsilon: the bound exceeds it in 5 % of audits, and is not far below."""
    true, rng = 2.0, np.random.default_rng(0)
    right = rng.binomial(400, 1 / (1 + math.exp(-true)), 400)
    bounds = np.array([epsilon_from_guesses(400, 400, int(count), 0.0, 0.05) for count in right])
    assert np.mean(bounds > true) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert np.median(bounds) > 1.6


@pytest.mark.parametrize("mean", [0.55, 0.7, 0.95])
def test_the_mean_is_rarely_overestimated(mean: float) -> None:
    """On coins, which vary most, and on shares of 16 coins."""
    rng = np.random.default_rng(1)
    for size in (1, 16):
        bounds = np.array([lower_bound_of_mean(rng.binomial(size, mean, 100) / size, 0.05) for _ in range(300)])
        assert np.mean(bounds > mean) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    assert np.median(bounds) > mean - 0.06


def test_constant_observations() -> None:
    assert lower_bound_of_mean([0.0] * 50, 0.05) == 0.0
    assert 0.9 < lower_bound_of_mean([1.0] * 100, 0.05) < 1.0
    assert lower_bound_of_mean([], 0.05) == 0.0


def test_gaussian_bound_follows_the_accounting() -> None:
    """A Gaussian mechanism's own share of right guesses, known almost exactly, gives almost its epsilon, never more."""
    share = NormalDist().cdf(0.5)
    found = epsilon_if_gaussian([share] * 3000, 1e-5, 0.05)
    truth = epsilon([PrivacyEvent(1.0, 1.0, 1)], 1e-5)
    assert 0.95 * truth < found < truth
    assert epsilon_if_gaussian([0.5] * 100, 1e-5, 0.05) == 0.0
