"""Accounting: known values, edge cases, composition, and planning."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from fedmed.errors import PrivacyError
from fedmed.privacy.accounting import PrivacyEvent, epsilon, group_events, plan_noise

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
    ("target", "rate", "steps"), [(4.0, 0.1, 50), (0.5, 0.1, 200), (8.0, 0.0256, 800), (1.0, 1.0, 20)]
)
def test_planned_noise_is_the_smallest_that_fits(target: float, rate: float, steps: int) -> None:
    noise = plan_noise(target, DELTA, rate, steps)
    assert noise == round(noise, 3)
    assert epsilon([PrivacyEvent(noise, rate, steps)], DELTA) <= target
    assert epsilon([PrivacyEvent(noise - 0.001, rate, steps)], DELTA) > target


def test_no_steps_need_no_noise() -> None:
    assert plan_noise(1.0, DELTA, 0.1, 0) == 0.0


def test_unreachable_target_is_refused() -> None:
    with pytest.raises(PrivacyError, match="not reached"):
        plan_noise(1e-6, 1e-9, 1.0, 1000)


@pytest.mark.parametrize(
    "event",
    [PrivacyEvent(-1, 0.1, 1), PrivacyEvent(math.nan, 0.1, 1), PrivacyEvent(1, 1.5, 1), PrivacyEvent(1, 0.1, -1)],
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
