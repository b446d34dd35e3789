"""A cap on the patients of a step: its accounting bounds what really happens, and a larger public bound is pessimistic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_truncated_subsampled_gaussian_mechanism
from scipy import stats

from fedmed.privacy.accounting import PrivacyEvent, epsilon, group_events
from fedmed.privacy.events import least_cap

DELTA = 1e-5
EPSILONS = np.concatenate([[0.0], np.geomspace(1e-3, 10.0, 25)])
Curve = npt.NDArray[np.float64]


def accounted(num_patients: int, rate: float, cap: int, noise: float) -> Curve:
    """delta at each of EPSILONS, as the accounting sees one step."""
    loss = from_truncated_subsampled_gaussian_mechanism(num_patients, rate, cap, noise, 4e-3)
    return np.array(loss.get_delta_for_epsilon(EPSILONS))


def really(num_patients: int, rate: float, cap: int, noise: float) -> Curve:
    """The same for the worst patients: one that adds +1, all others -1. Both directions, by numerical integration."""
    grid = np.linspace(-cap - 10 * noise, 1 + 10 * noise, 8001)
    with_one, without = np.zeros_like(grid), np.zeros_like(grid)
    for others in range(num_patients):
        share = stats.binom.pmf(others, num_patients - 1, rate)
        stays = rate * min(1.0, cap / (others + 1))  # drawn, and kept in a uniformly random subset of `cap`
        alone = stats.norm.pdf(grid, -min(others, cap), noise)
        without += share * alone
        with_one += share * (stays * stats.norm.pdf(grid, 1 - min(others, cap - 1), noise) + (1 - stays) * alone)
    step = grid[1] - grid[0]
    pairs = [(with_one, without), (without, with_one)]
    return np.array([max(np.clip(p - np.exp(e) * q, 0, None).sum() * step for p, q in pairs) for e in EPSILONS])


CASES = [(40, 0.2, 8, 1.0), (40, 0.2, 11, 1.0), (12, 0.5, 6, 2.0), (30, 0.1, 3, 0.8), (6, 0.9, 6, 1.0)]


@pytest.mark.parametrize(("num_patients", "rate", "cap", "noise"), CASES)
def test_the_accounting_bounds_the_worst_patients(num_patients: int, rate: float, cap: int, noise: float) -> None:
    truth = really(num_patients, rate, cap, noise)
    assert (truth <= accounted(num_patients, rate, cap, noise) + 1e-9).all()


@pytest.mark.parametrize(
    ("bound", "rate", "cap", "noise"),
    [(100, 0.1, 10, 1.0), (100, 0.1, 15, 1.0), (1000, 0.05, 55, 2.0), (20, 0.5, 10, 1.0), (100, 0.5, 50, 4.0)],
)
def test_a_larger_bound_is_pessimistic_at_every_epsilon(bound: int, rate: float, cap: int, noise: float) -> None:
    """Per step and for every epsilon, so it holds for every composition too."""
    worst = accounted(bound, rate, cap, noise)
    for share in (0.5, 0.9, 0.97):
        assert (accounted(max(1, int(bound * share)), rate, cap, noise) <= worst + 1e-12).all()


def test_below_the_expected_draw_it_would_not_be() -> None:
    """Why such a cap is refused: with more patients each one is kept less often."""
    assert (accounted(930, 0.1, 80, 1.0) > accounted(1000, 0.1, 80, 1.0) + 1e-4).any()


def test_a_cap_costs_less_the_higher_it_is_and_nothing_when_it_never_bites() -> None:
    costs = [epsilon([PrivacyEvent(2.0, 0.1, 20, cap, 200)], DELTA) for cap in (20, 26, 40, 60)]
    plain = epsilon([PrivacyEvent(2.0, 0.1, 20)], DELTA)
    assert costs == sorted(costs, reverse=True) and costs[0] > 1.5 * plain
    assert costs[-1] == pytest.approx(plain, rel=1e-3) and costs[-1] > plain - 1e-6
    assert group_events([PrivacyEvent(1.0, 0.1, 20, 200, 200)]) == (PrivacyEvent(1.0, 0.1, 20),)


def test_the_least_cap_is_the_expected_draw() -> None:
    assert [least_cap(0.07, 100), least_cap(0.1, 105), least_cap(1.0, 9)] == [7, 11, 9]
