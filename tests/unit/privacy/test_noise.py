"""The Gaussian mechanism: variance, independence, dtype, refusals."""

from __future__ import annotations

import pytest
import torch
from helpers_device import DEVICES
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from fedmed.errors import PrivacyError
from fedmed.privacy import noise
from fedmed.privacy.noise import add_noise
from fedmed.privacy.random import InsecureSeededRandom, SecureRandom


@pytest.mark.parametrize("device", DEVICES)
def test_noise_has_the_asked_variance(device: torch.device) -> None:
    std, size = 2.5, 40_000
    noisy = add_noise(torch.zeros(size, device=device), std, SecureRandom()).cpu()
    statistic = float((noisy.double() / std).square().sum())
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=size)
    assert low < statistic < high
    assert noisy.dtype == torch.float32
    assert stats.kstest(noisy.numpy() / std, "norm").pvalue > 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_elements_get_independent_noise(device: torch.device) -> None:
    first, second = add_noise(torch.zeros(10_000, device=device), 1.0, SecureRandom()).split(5000)
    assert abs(float((first * second).mean())) < 0.08


def test_zero_std_changes_nothing() -> None:
    total = torch.ones(3)
    assert torch.equal(add_noise(total, 0.0, SecureRandom()), total)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_a_std_out_of_range_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="standard deviation"):
        add_noise(torch.zeros(1), std, SecureRandom())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_cover_the_sum_and_keep_its_dtype(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_CPU_BLOCK", 7)
    total = torch.arange(30, dtype=dtype)
    noisy = add_noise(total, 0.5, InsecureSeededRandom(1))
    drawn = InsecureSeededRandom(1)
    expected = torch.cat([drawn.normal(part.shape) for part in total.split(7)]) * 0.5 + total
    assert noisy.dtype == dtype
    assert torch.equal(noisy, expected.to(dtype))
    assert torch.equal(total, torch.arange(30, dtype=dtype))  # not in place


class CpuTensors(TorchDispatchMode):
    """Notes the size of every tensor that an operation makes on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.device.type == "cpu":
            self.sizes.append(made.numel())
        return made


def test_another_device_than_the_cpu_makes_its_noise_itself() -> None:
    """torch's `meta` device computes shapes alone: it stands for a GPU. Only the key's words may be made on the CPU."""
    total = torch.zeros(3_000_000, device="meta")
    with CpuTensors() as made:
        noisy = add_noise(total, 1.0, SecureRandom())
    assert (noisy.device.type, noisy.shape, noisy.dtype) == ("meta", (3_000_000,), torch.float32)
    assert max(made.sizes, default=0) <= 12
    with CpuTensors() as made:
        add_noise(torch.zeros(300), 1.0, SecureRandom())
    assert max(made.sizes) >= 300  # the watch sees what it looks for
