"""Randomness: distribution, freshness, and what the test-only source is for."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from scipy import stats

from fedmed.privacy.random import InsecureSeededRandom, RandomSource, SecureRandom


@pytest.mark.parametrize("source", [SecureRandom(), InsecureSeededRandom(1)])
def test_normals_are_standard_gaussians(source: RandomSource) -> None:
    drawn = source.normal((200, 101)).numpy().ravel()
    assert drawn.dtype == np.float64
    assert stats.kstest(drawn, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(drawn[:10100], drawn[10100:])[0, 1]) < 0.06  # halves of the Box-Muller pairs


def test_variance_by_chi_square() -> None:
    drawn = SecureRandom().normal((50_000,))
    statistic = float(drawn.square().sum())
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=50_000)
    assert low < statistic < high


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
