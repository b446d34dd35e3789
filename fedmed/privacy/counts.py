"""How many of a site's patients were answered right, with noise. In: one share per drawn patient; out: two numbers. Pure.

    share a of each drawn patient's records answered right -> (a - 1/2, 1), summed over patients -> noise -> NoisyCounts
    NoisyCounts of every site -> federated_accuracy -> estimate and its standard error

    >>> from fedmed.privacy.random import InsecureSeededRandom
    >>> noisy_counts([1.0, 0.5, 0.0], 0.0, InsecureSeededRandom(0))
    NoisyCounts(correct=1.5, patients=3.0)

| case                | what holds                                                                                  |
| ------------------- | ------------------------------------------------------------------------------------------- |
| guarantee           | with each patient drawn with probability q on its own, one call is one Poisson-subsampled   |
|                     | Gaussian event: PrivacyEvent(noise_multiplier, q, steps=1)                                  |
| sensitivity         | one patient, with all its records, moves the pair by its own (a - 1/2, 1): at most          |
|                     | SENSITIVITY = sqrt(5/4) in L2. Without the shift by 1/2, which changes nothing else, it is  |
|                     | sqrt(2), and the accuracy 1.5 times noisier                                                 |
| how many were drawn | is private too: it is the pair's second number, and noisy                                   |
| nobody drawn        | noise alone, as after any other draw                                                        |
| noise_multiplier 0  | the pair itself: no privacy                                                                 |
| low bits            | the pair leaves rounded to 3 digits after the point, which is post-processing               |
| share out of [0, 1] | PrivacyError; NaN too. A patient without records is not drawn at all                        |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmed.errors import PrivacyError

if TYPE_CHECKING:  # imports torch, and the aggregator and the ledger's side of a site read counts without it
    from fedmed.privacy.random import RandomSource

SENSITIVITY = math.sqrt(1.25)
_DIGITS = 3
# Below so many standard deviations of its own noise a count of patients says nothing, and nothing is divided by it.
_LEAST_COUNT = 3.0


@dataclass(frozen=True, slots=True)
class NoisyCounts:
    """What one evaluation may say.

    Attributes:
        correct: sum over drawn patients of the share of their records answered right, with noise.
        patients: drawn patients, with noise; may be negative.
    """

    correct: float
    patients: float


NO_COUNTS = NoisyCounts(0.0, 0.0)


def patient_vector(share: float) -> tuple[float, float]:
    """What one patient adds to the pair before noise. Raises PrivacyError for a share outside [0, 1]."""
    if not 0 <= share <= 1:
        raise PrivacyError("a patient's share of right answers is outside [0, 1]")  # never its value
    return share - 0.5, 1.0


def noisy_counts(shares: Sequence[float], noise_multiplier: float, random: RandomSource) -> NoisyCounts:
    """The counts of the drawn patients. Noise has standard deviation noise_multiplier * SENSITIVITY on either number.

    Args:
        shares: per drawn patient, the share of its drawn records that were answered right, in [0, 1].
        noise_multiplier: >= 0, as the ledger was charged.
        random: a secure source, except in tests.

    Raises:
        PrivacyError: a value is outside its range.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise PrivacyError(f"metrics_noise_multiplier={noise_multiplier}: expected >= 0 and finite")
    noise = [value * noise_multiplier * SENSITIVITY for value in random.normal((2,)).tolist()]
    vectors = [patient_vector(share) for share in shares]
    lead, patients = (math.fsum(column) for column in zip(*vectors, strict=True)) if vectors else (0.0, 0.0)
    lead, patients = lead + noise[0], patients + noise[1]
    return NoisyCounts(round(lead + patients / 2, _DIGITS), round(patients, _DIGITS))


def federated_accuracy(counts: Sequence[NoisyCounts], noise_multiplier: float) -> tuple[float, float] | None:
    """Accuracy over all sites' drawn patients, in [0, 1], and its standard error from the noise alone (first order).

    With l = correct - patients / 2 and n = patients, summed over S sites, whose noise is independent with deviation
    s = noise_multiplier * SENSITIVITY * sqrt(S): accuracy = 1/2 + l / n, error = s * sqrt(1 + (l / n)^2) / n.

    Returns:
        None where n is below three of its own standard deviations.
    """
    total = math.fsum(item.patients for item in counts)
    deviation = noise_multiplier * SENSITIVITY * math.sqrt(len(counts))
    if total <= 0 or total < _LEAST_COUNT * deviation:
        return None
    lead = (math.fsum(item.correct for item in counts) - total / 2) / total
    return min(1.0, max(0.0, 0.5 + lead)), deviation * math.hypot(1.0, lead) / total
