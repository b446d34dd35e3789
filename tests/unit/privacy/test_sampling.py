"""Patient and record sampling: rates and subsets."""

from __future__ import annotations

from collections import Counter

import pytest
from scipy import stats

from fedmed.errors import PrivacyError
from fedmed.privacy.random import SecureRandom
from fedmed.privacy.sampling import draw_patients, draw_records


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.9])
def test_every_patient_is_included_at_the_rate(rate: float) -> None:
    draws, patients, random = 2000, 50, SecureRandom()
    counts = Counter(int(index) for _ in range(draws) for index in draw_patients(patients, rate, random))
    low, high = stats.binom.ppf([1e-8, 1 - 1e-8], draws, rate)
    assert all(low <= counts[patient] <= high for patient in range(patients))
    low, high = stats.binom.ppf([1e-7, 1 - 1e-7], draws * patients, rate)
    assert low <= counts.total() <= high


def test_the_size_of_a_draw_varies_as_a_binomial() -> None:
    random = SecureRandom()
    sizes = [len(draw_patients(100, 0.1, random)) for _ in range(2000)]
    assert stats.binom.var(100, 0.1) * 0.8 < stats.tvar(sizes) < stats.binom.var(100, 0.1) * 1.25


@pytest.mark.parametrize(("rate", "expected"), [(0.0, []), (1.0, [0, 1, 2, 3, 4])])
def test_nobody_and_everybody(rate: float, expected: list[int]) -> None:
    assert draw_patients(5, rate, SecureRandom()).tolist() == expected


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(PrivacyError, match="sample_rate"):
        draw_patients(5, rate, SecureRandom())


def test_records_are_capped_distinct_and_evenly_drawn() -> None:
    random, owned = SecureRandom(), [10, 11, 12, 13, 14]
    counts: Counter[int] = Counter()
    for _ in range(2000):
        drawn = draw_records(owned, 2, random)
        assert len(set(drawn)) == 2 and set(drawn) <= set(owned) and drawn == sorted(drawn)
        counts.update(drawn)
    assert all(680 < counts[record] < 920 for record in owned)


def test_few_records_are_all_taken() -> None:
    assert draw_records([7, 3], 4, SecureRandom()) == [3, 7]
