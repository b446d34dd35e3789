"""Noisy counts: what one patient moves, what the noise is, what the aggregator makes of them."""

import math

import numpy as np
import pytest

from fedmed.errors import PrivacyError
from fedmed.privacy.counts import SENSITIVITY, NoisyCounts, federated_accuracy, noisy_counts, patient_vector
from fedmed.privacy.random import InsecureSeededRandom, SecureRandom


def pair(shares: list[float]) -> np.ndarray:
    """The pair that noise is added to."""
    return np.array([patient_vector(share) for share in shares]).reshape(-1, 2).sum(axis=0)


def test_adding_or_removing_one_patient_moves_the_pair_by_at_most_the_sensitivity() -> None:
    random = np.random.default_rng(0)
    moved = []
    for _ in range(500):
        shares = random.choice([0.0, 1.0, 0.5, float(random.random())], size=int(random.integers(0, 40))).tolist()
        one = float(random.choice([0.0, 1.0, random.random()]))
        moved.append(np.linalg.norm(pair([*shares, one]) - pair(shares)))
    assert max(moved) <= SENSITIVITY + 1e-12
    assert max(moved) == pytest.approx(SENSITIVITY)  # the bound is met: no noise is wasted


@pytest.mark.parametrize("noise", [0.5, 4.0])
def test_noise_has_the_variance_that_the_ledger_is_charged_for(noise: float) -> None:
    """Of the pair (lead, patients): two independent Gaussians of deviation noise * SENSITIVITY."""
    random, count = InsecureSeededRandom(1), 2000
    drawn = [noisy_counts([1.0, 0.25], noise, random) for _ in range(count)]
    patients = np.array([item.patients for item in drawn])
    lead = np.array([item.correct for item in drawn]) - patients / 2
    for values, mean in ((lead, 0.25), (patients, 2.0)):
        assert abs(values.mean() - mean) < 5 * noise * SENSITIVITY / math.sqrt(count)
        # (n - 1) s^2 / sigma^2 is chi-square with n - 1 degrees of freedom: within five deviations of its mean.
        assert values.var(ddof=1) / (noise * SENSITIVITY) ** 2 == pytest.approx(1, abs=5 * math.sqrt(2 / (count - 1)))
    assert abs(np.corrcoef(lead, patients)[0, 1]) < 5 / math.sqrt(count)


def test_two_draws_of_the_real_source_differ() -> None:
    random = SecureRandom()
    assert noisy_counts([1.0], 1.0, random) != noisy_counts([1.0], 1.0, random)


def test_without_noise_it_counts() -> None:
    random = InsecureSeededRandom(0)
    assert noisy_counts([1.0, 0.5, 0.0], 0.0, random) == NoisyCounts(1.5, 3.0)
    assert noisy_counts([], 0.0, random) == NoisyCounts(0.0, 0.0)


def test_nobody_drawn_is_noise_alone() -> None:
    counts = noisy_counts([], 2.0, InsecureSeededRandom(0))
    assert counts.patients != 0.0
    assert counts.correct != 0.0


@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan])
def test_a_share_out_of_range_is_refused_without_telling_it(share: float) -> None:
    with pytest.raises(PrivacyError, match="outside") as caught:
        noisy_counts([share], 1.0, InsecureSeededRandom(0))
    assert str(share) not in str(caught.value)


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
def test_noise_out_of_range_is_refused(noise: float) -> None:
    with pytest.raises(PrivacyError, match="metrics_noise_multiplier"):
        noisy_counts([1.0], noise, InsecureSeededRandom(0))


def test_the_estimate_is_right_and_its_error_is_that_of_the_noise() -> None:
    """Many federations of three sites, 0.8 right: the estimates spread as the error says."""
    random, noise = InsecureSeededRandom(2), 3.0
    shares = [1.0] * 160 + [0.0] * 40
    found = [federated_accuracy([noisy_counts(shares, noise, random) for _ in range(3)], noise) for _ in range(600)]
    estimates, errors = (np.array(column) for column in zip(*[item for item in found if item], strict=True))
    assert len(estimates) == 600
    assert estimates.mean() == pytest.approx(0.8, abs=5 * errors.mean() / math.sqrt(600))
    assert estimates.std() == pytest.approx(errors.mean(), rel=0.15)


def test_too_few_patients_give_no_estimate() -> None:
    assert federated_accuracy([NoisyCounts(3.0, 4.0)], noise_multiplier=2.0) is None
    assert federated_accuracy([NoisyCounts(-3.0, -40.0)], noise_multiplier=2.0) is None
    assert federated_accuracy([], noise_multiplier=2.0) is None
    assert federated_accuracy([NoisyCounts(0.0, 0.0)], noise_multiplier=0.0) is None


def test_an_estimate_stays_within_its_range() -> None:
    accuracy, _ = federated_accuracy([NoisyCounts(31.0, 30.0)], 1.0) or (None, None)
    assert accuracy == 1.0
