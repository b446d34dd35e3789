"""Clipping and noise: the bound holds over dtypes, norms and faults; noise has its variance."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from fedmed.errors import PrivacyError
from fedmed.privacy.clipping import clip_and_sum
from fedmed.privacy.noise import add_noise
from fedmed.privacy.random import SecureRandom


def norm(value: torch.Tensor) -> float:
    return float(value.double().norm())


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-3, 1.0, 1e3, 1e12])
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 50.0])
def test_one_patient_moves_the_sum_by_at_most_the_bound(scale: float, max_norm: float) -> None:
    patients = torch.randn(3, 17, generator=torch.Generator().manual_seed(0)) * scale
    without_last = clip_and_sum(patients[:2], max_norm)
    moved = clip_and_sum(patients, max_norm).double() - without_last.double()
    rounding = 1e-6 * norm(without_last)
    assert norm(moved) <= max_norm + rounding
    assert norm(clip_and_sum(patients[2:], max_norm)) <= max_norm


def test_small_gradients_pass_unchanged_and_large_ones_keep_their_direction() -> None:
    small, large = torch.tensor([[0.3, 0.4]]), torch.tensor([[30.0, 40.0]])
    assert torch.equal(clip_and_sum(small, 1.0), small[0])
    assert torch.allclose(clip_and_sum(large, 1.0), torch.tensor([0.6, 0.8]), rtol=2e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_patient_that_is_not_finite_contributes_nothing(bad: float) -> None:
    gradients = torch.tensor([[bad, 1.0, 1.0], [0.3, 0.4, 0.0]])
    assert torch.equal(clip_and_sum(gradients, 1.0), torch.tensor([0.3, 0.4, 0.0]))


def test_no_patients_sum_to_zero() -> None:
    assert torch.equal(clip_and_sum(torch.zeros(0, 2), 1.0), torch.zeros(2))


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_out_of_range_is_refused(bound: float) -> None:
    with pytest.raises(PrivacyError, match="max_grad_norm"):
        clip_and_sum(torch.zeros(1, 2), bound)


def test_noise_has_the_asked_variance() -> None:
    std, size = 2.5, 40_000
    noisy = add_noise(torch.zeros(size), std, SecureRandom())
    statistic = float((noisy.double() / std).square().sum())
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=size)
    assert low < statistic < high
    assert noisy.dtype == torch.float32
    assert stats.kstest(noisy.numpy() / std, "norm").pvalue > 1e-6


def test_elements_get_independent_noise() -> None:
    first, second = add_noise(torch.zeros(10_000), 1.0, SecureRandom()).split(5000)
    assert abs(float((first * second).mean())) < 0.08


def test_zero_std_changes_nothing() -> None:
    total = torch.ones(3)
    assert torch.equal(add_noise(total, 0.0, SecureRandom()), total)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_a_std_out_of_range_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="standard deviation"):
        add_noise(torch.zeros(1), std, SecureRandom())
