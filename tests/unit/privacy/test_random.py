"""Randomness: distribution, freshness, and what the test-only source is for."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from helpers_device import DEVICES
from scipy import stats

from fedmed.privacy.random import InsecureSeededRandom, RandomSource, SecureRandom, box_muller


@pytest.mark.parametrize("source", [SecureRandom(), InsecureSeededRandom(1)])
def test_normals_are_standard_gaussians(source: RandomSource) -> None:
    drawn = source.normal((200, 101)).numpy().ravel()
    assert drawn.dtype == np.float64
    assert stats.kstest(drawn, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(drawn[:10100], drawn[10100:])[0, 1]) < 0.06  # halves of the Box-Muller pairs


@pytest.mark.parametrize("device", DEVICES)
def test_variance_by_chi_square(device: torch.device) -> None:
    drawn = SecureRandom().normal((50_000,), device)
    assert drawn.device.type == device.type
    statistic = float(drawn.square().sum())
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=50_000)
    assert low < statistic < high


def test_tails_have_the_right_mass() -> None:
    """Numbers beyond 3, 4 and 4.5 deviations, of a million: counts within what a binomial allows once in a million."""
    drawn = SecureRandom().normal((1_000_000,)).abs()
    for edge in (3.0, 4.0, 4.5):
        low, high = stats.binom.ppf([1e-6, 1 - 1e-6], n=drawn.numel(), p=2 * stats.norm.sf(edge))
        assert low <= int((drawn > edge).sum()) <= high


def test_the_ends_of_the_uniforms_give_the_ends_of_the_gaussians() -> None:
    """Radius from the smallest and largest word; angle 0 from the word 0."""
    words = torch.tensor([-(2**63), 2**63 - 1, 0, 0, 0, 0])
    radii = box_muller(words[[0, 1, 4, 5]], (4,))[:2]
    assert radii.tolist() == pytest.approx([math.sqrt(2 * math.log(2.0**53)), 0.0])


def test_box_muller_follows_its_formula() -> None:
    """Against the plain formula on uniforms made the plain way: 53 high bits, shifted by half a turn."""
    words = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63, 1000))
    uniform = ((words.numpy() >> 11) + 2.0**52) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:500] + 2.0**-53)), 2 * np.pi * (uniform[500:] - 0.5)
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    np.testing.assert_allclose(box_muller(words, (1000,)).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("source", [SecureRandom(), InsecureSeededRandom(1)])
def test_uniforms_lie_in_the_unit_interval(source: RandomSource) -> None:
    drawn = source.uniform(50_000)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-6


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (2, 3), ()])
def test_every_shape(shape: tuple[int, ...]) -> None:
    drawn = SecureRandom().normal(shape)
    assert drawn.shape == shape
    assert bool(drawn.isfinite().all())


def test_secure_sources_never_repeat() -> None:
    first = SecureRandom()
    assert not torch.equal(first.normal((8,)), first.normal((8,)))
    assert not torch.equal(SecureRandom().normal((8,)), SecureRandom().normal((8,)))
    assert first.normal((200_000,)).unique().numel() == 200_000


def test_seeding_libraries_does_not_reach_the_secure_source() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append(SecureRandom().normal((8,)))
    assert not torch.equal(drawn[0], drawn[1])


def test_seeded_source_repeats() -> None:
    assert torch.equal(InsecureSeededRandom(3).normal((8,)), InsecureSeededRandom(3).normal((8,)))


def test_a_forked_process_draws_another_stream() -> None:
    source = SecureRandom()
    source.normal((2,))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, source.uniform(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 64) != source.uniform(4).tobytes()
