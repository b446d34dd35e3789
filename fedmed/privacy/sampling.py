"""Who takes part in a step. In: how many patients, how likely; out: indices.

    >>> from fedmed.privacy.random import InsecureSeededRandom
    >>> draw_patients(4, 1.0, InsecureSeededRandom(0)).tolist()
    [0, 1, 2, 3]

| case                 | what holds                                                                               |
| -------------------- | ---------------------------------------------------------------------------------------- |
| every draw           | each patient is drawn on its own with probability sample_rate (Poisson sampling), which  |
|                      | is what the accounting assumes; shuffled or fixed-size batches leak up to four times     |
|                      | more than accounted as Poisson (arXiv 2411.10614)                                        |
| which records        | are drawn for each patient apart: the guarantee covers the patient, whatever is drawn    |
| max_patients         | where more were drawn, a uniformly random subset of so many of them stays: what the      |
|                      | accounting of a cap assumes (fedmed.privacy.events; arXiv 2508.15089)                    |
| empty draw           | allowed, and a step like any other: noise alone is released                              |
| sample_rate 0 or 1   | nobody; everybody                                                                        |
| fewer records than k | all of them                                                                              |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedmed.errors import PrivacyError
from fedmed.privacy.random import RandomSource


def draw_patients(
    num_patients: int, sample_rate: float, random: RandomSource, max_patients: int = 0
) -> npt.NDArray[np.intp]:
    """Indices, ascending, of the patients of one step: at most `max_patients`, where that is not 0. May be empty.

    Raises:
        PrivacyError: `sample_rate` is outside [0, 1], or `max_patients` is negative.
    """
    if not 0 <= sample_rate <= 1:
        raise PrivacyError(f"sample_rate={sample_rate}: expected 0 <= sample_rate <= 1")
    if max_patients < 0:
        raise PrivacyError(f"max_patients={max_patients}: expected >= 0 (0 is no cap)")
    drawn = np.flatnonzero(random.uniform(num_patients) < sample_rate)
    return drawn[_subset(len(drawn), max_patients, random)] if 0 < max_patients < len(drawn) else drawn


def draw_records(records: Sequence[int], at_most: int, random: RandomSource) -> list[int]:
    """At most `at_most` of a patient's records, without replacement, every subset equally likely; ascending.

    Raises:
        PrivacyError: `at_most` is below 1.
    """
    if at_most < 1:
        raise PrivacyError(f"records_per_patient={at_most}: expected >= 1")
    ordered = sorted(records)
    if len(ordered) <= at_most:
        return ordered
    return [ordered[index] for index in _subset(len(records), at_most, random)]


def _subset(count: int, size: int, random: RandomSource) -> npt.NDArray[np.intp]:
    """`size` of the indices below `count`, ascending, every subset equally likely."""
    return np.sort(np.argsort(random.uniform(count))[:size])
