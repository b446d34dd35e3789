"""What is found is on the safe side of the target, and the next value is not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fedmed.errors import PrivacyError
from fedmed.privacy.accounting import PrivacyEvent, epsilon
from fedmed.privacy.calibration import largest_count, largest_rate, plan_noise, smallest_noise

DELTA = 1e-5


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


def test_what_is_charged_beside_the_steps_is_planned_for() -> None:
    counts = [PrivacyEvent(8.0, 0.1, 5)]
    noise = plan_noise(1.0, DELTA, 0.1, 50, others=counts)
    assert noise > plan_noise(1.0, DELTA, 0.1, 50)
    assert epsilon([*counts, PrivacyEvent(noise, 0.1, 50)], DELTA) <= 1.0


def test_what_leaves_no_room_for_the_steps_is_told_with_its_cost() -> None:
    counts = [PrivacyEvent(1.0, 0.1, 3)]
    with pytest.raises(PrivacyError, match="epsilon=1 is not reached") as caught:
        plan_noise(1.0, DELTA, 0.1, 15, others=counts)
    assert f"it is still {epsilon(counts, DELTA):.3g}" in caught.value.message
    assert "evaluation counts" in caught.value.hint


def test_a_cap_is_planned_for() -> None:
    capped = plan_noise(0.7, DELTA, 0.1, 20, max_patients=110, num_patients=1000)
    assert capped > plan_noise(0.7, DELTA, 0.1, 20)
    assert epsilon([PrivacyEvent(capped, 0.1, 20, 110, 1000)], DELTA) <= 0.7


def by_noise(noise: float) -> Sequence[PrivacyEvent]:
    return [PrivacyEvent(noise, 0.1, 30)]


def by_steps(steps: float) -> Sequence[PrivacyEvent]:
    return [PrivacyEvent(2.4, 0.1, int(steps))]


def by_rate(rate: float) -> Sequence[PrivacyEvent]:
    return [PrivacyEvent(2.4, rate, 30)]


def test_the_largest_count_fits_and_one_more_does_not() -> None:
    count = largest_count(by_steps, 1.2, DELTA)
    assert epsilon(by_steps(count), DELTA) <= 1.2 < epsilon(by_steps(count + 1), DELTA)
    assert largest_count(by_steps, 0.1, DELTA) == 0


def test_the_largest_rate_fits_and_one_digit_more_does_not() -> None:
    rate = largest_rate(by_rate, 1.2, DELTA)
    assert rate == float(f"{rate:.3g}")
    assert epsilon(by_rate(rate), DELTA) <= 1.2 < epsilon(by_rate(rate * 1.01), DELTA)
    assert largest_rate(by_rate, 1000.0, DELTA, most=0.5) == 0.5


@pytest.mark.parametrize("truth", [0.6, 1.0, 3.7])
def test_noise_is_found_back(truth: float) -> None:
    assert smallest_noise(by_noise, epsilon(by_noise(truth), DELTA), DELTA) == truth


@pytest.mark.parametrize("target", [0.0, -1.0, float("inf"), float("nan")])
def test_targets_that_mean_nothing_are_refused(target: float) -> None:
    with pytest.raises(PrivacyError, match="target epsilon"):
        smallest_noise(by_noise, target, DELTA)


def test_counts_without_end_are_refused() -> None:
    with pytest.raises(PrivacyError, match="allows more than"):
        largest_count(lambda count: [PrivacyEvent(1000.0, 1e-6, int(count))], 5.0, DELTA)
