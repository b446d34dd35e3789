"""Accounting: known values, edge cases, composition, and the second accountant."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from fedmed.errors import PrivacyError
from fedmed.privacy.accounting import PrivacyEvent, cross_check, epsilon, group_events

DELTA = 1e-5


def test_matches_the_published_value() -> None:
    assert epsilon([PrivacyEvent(1.0, 0.0256, 800)], DELTA) == pytest.approx(4.57, abs=0.01)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (PrivacyEvent(1.0, 0.1, 0), 0.0),
        (PrivacyEvent(1.0, 0.0, 10), 0.0),
        (PrivacyEvent(0.0, 0.1, 1), math.inf),
        (PrivacyEvent(0.0, 0.1, 0), 0.0),
    ],
)
def test_edge_cases(event: PrivacyEvent, expected: float) -> None:
    assert epsilon([event], DELTA) == expected


def test_delta_zero_has_no_finite_epsilon() -> None:
    assert epsilon([PrivacyEvent(1.0, 0.1, 1)], 0.0) == math.inf
    assert epsilon([], 0.0) == 0.0


def test_sampling_everybody_is_the_plain_gaussian() -> None:
    # The exact epsilon of one Gaussian release, from the analytic formula (Balle & Wang, 2018), by bisection.
    sigma = 2.0
    assert epsilon([PrivacyEvent(sigma, 1.0, 1)], DELTA) == pytest.approx(_analytic_gaussian(sigma), abs=2e-3)


def _analytic_gaussian(sigma: float) -> float:
    def phi(value: float) -> float:
        return 0.5 * math.erfc(-value / math.sqrt(2))

    low, high = 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        spent = phi(0.5 / sigma - middle * sigma) - math.exp(middle) * phi(-0.5 / sigma - middle * sigma)
        low, high = (middle, high) if spent > DELTA else (low, middle)
    return high


def test_equal_events_are_grouped_and_free_ones_dropped() -> None:
    events = [PrivacyEvent(1.0, 0.1, 3), PrivacyEvent(2.0, 0.1, 1), PrivacyEvent(1.0, 0.1, 4), PrivacyEvent(1.0, 0, 9)]
    assert group_events(events) == (PrivacyEvent(1.0, 0.1, 7), PrivacyEvent(2.0, 0.1, 1))


def test_order_and_splitting_do_not_matter() -> None:
    whole = epsilon([PrivacyEvent(1.5, 0.1, 20), PrivacyEvent(1.0, 0.2, 5)], DELTA)
    parts = epsilon([PrivacyEvent(1.0, 0.2, 5)] + [PrivacyEvent(1.5, 0.1, 5)] * 4, DELTA)
    assert whole == parts


def test_more_of_anything_costs_more() -> None:
    base = epsilon([PrivacyEvent(1.5, 0.1, 20)], DELTA)
    assert epsilon([PrivacyEvent(1.5, 0.1, 40)], DELTA) > base
    assert epsilon([PrivacyEvent(1.5, 0.2, 20)], DELTA) > base
    assert epsilon([PrivacyEvent(1.2, 0.1, 20)], DELTA) > base


@pytest.mark.parametrize(
    "event",
    [
        PrivacyEvent(-1, 0.1, 1),
        PrivacyEvent(math.nan, 0.1, 1),
        PrivacyEvent(1, 1.5, 1),
        PrivacyEvent(1, 0.1, -1),
        PrivacyEvent(1, 0.1, 1, max_patients=-1),
        PrivacyEvent(1, 0.1, 1, max_patients=5),
        PrivacyEvent(1, 0.1, 1, max_patients=5, num_patients=51),
        PrivacyEvent(1, 0.1, 10**8),
    ],
)
def test_values_out_of_range_are_refused(event: PrivacyEvent) -> None:
    with pytest.raises(PrivacyError, match="expected"):
        epsilon([event], DELTA)


@pytest.mark.parametrize("delta", [-1e-5, 1.0, math.nan])
def test_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        epsilon([], delta)


def test_accounting_alone_imports_no_torch() -> None:
    code = (
        "import sys; from fedmed.privacy.accounting import epsilon, PrivacyEvent;"
        "epsilon([PrivacyEvent(1.0, 0.1, 1)], 1e-5); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


# Google's dp_accounting as it is meant to be used, with its own step events; ours caches steps and chooses the buckets.
@pytest.mark.parametrize(
    "event", [PrivacyEvent(1.0, 0.1, 50), PrivacyEvent(2.0, 1.0, 7), PrivacyEvent(2.0, 0.1, 20, 130, 1000)]
)
def test_equals_the_librarys_accountant(event: PrivacyEvent) -> None:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    step: dp_accounting.DpEvent = dp_accounting.PoissonSampledDpEvent(
        event.sample_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier)
    )
    if event.max_patients:
        step = dp_accounting.TruncatedSubsampledGaussianDpEvent(
            event.num_patients, event.sample_rate, event.max_patients, event.noise_multiplier
        )
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(step, event.steps)
    assert epsilon([event], DELTA) == pytest.approx(accountant.get_epsilon(DELTA), abs=1e-4)


GRID = [(noise, rate, steps) for noise in (0.7, 1.5, 6.0) for rate in (0.01, 0.2, 1.0) for steps in (1, 40)]


@pytest.mark.parametrize(("noise", "rate", "steps"), GRID)
def test_both_accountants_agree(noise: float, rate: float, steps: int) -> None:
    check = cross_check([PrivacyEvent(noise, rate, steps)], DELTA)
    assert check.pld == epsilon([PrivacyEvent(noise, rate, steps)], DELTA)
    assert check.difference < 0.02


def test_both_accountants_agree_on_a_history_of_several_kinds() -> None:
    check = cross_check([PrivacyEvent(1.5, 0.1, 20), PrivacyEvent(1.0, 0.02, 100), PrivacyEvent(8.0, 0.1, 5)], DELTA)
    assert check.difference < 0.02


@pytest.mark.parametrize(
    "event", [PrivacyEvent(30.0, 1e-4, 10**6), PrivacyEvent(0.05, 0.1, 50), PrivacyEvent(1.0, 1e-9, 10**6)]
)
def test_what_cannot_be_checked_is_refused_in_words(event: PrivacyEvent) -> None:
    assert 0 < epsilon([event], DELTA) < math.inf
    with pytest.raises(PrivacyError, match="reach") as caught:
        cross_check([event], DELTA)
    assert f"noise_multiplier={event.noise_multiplier:g}" in caught.value.message and caught.value.hint


def test_accountants_that_disagree_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmed.privacy.accounting._prv_epsilon", lambda *_: 5.5)
    with pytest.raises(PrivacyError, match="disagree"):
        cross_check([PrivacyEvent(1.0, 0.1, 50)], DELTA)


@pytest.mark.parametrize(("noise", "rate", "steps"), [(30.0, 1e-4, 10**5), (1.0, 1e-3, 10**5), (5.0, 1e-3, 10**6)])
def test_many_faint_steps_are_bounded_from_above_and_not_by_much(noise: float, rate: float, steps: int) -> None:
    # Central limit: the loss tends to that of one Gaussian with mu = q sqrt(T (exp(1/sigma^2) - 1)).
    mu = rate * math.sqrt(steps * math.expm1(noise**-2))
    ours = epsilon([PrivacyEvent(noise, rate, steps)], DELTA)
    assert _analytic_gaussian(1 / mu) * 0.9 < ours < _analytic_gaussian(1 / mu) * 1.15 + 0.002
