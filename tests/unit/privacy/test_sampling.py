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


def test_above_the_cap_a_uniformly_random_subset_stays() -> None:
    patients, rate, cap, draws, random = 20, 0.5, 9, 6000, SecureRandom()
    drawn = [draw_patients(patients, rate, random, cap) for _ in range(draws)]
    sizes = Counter(map(len, drawn))
    assert max(sizes) == cap
    # Sizes below the cap stay as Poisson sampling makes them; all above become the cap.
    low, high = stats.binom.ppf([1e-8, 1 - 1e-8], draws, stats.binom.sf(cap - 1, patients, rate))
    assert low <= sizes[cap] <= high
    counts = Counter(int(index) for step in drawn for index in step)
    kept = sum(stats.binom.pmf(size, patients, rate) * min(size, cap) for size in range(patients + 1)) / patients
    low, high = stats.binom.ppf([1e-8, 1 - 1e-8], draws, kept)
    assert all(low <= counts[patient] <= high for patient in range(patients))
    assert all((step[:-1] < step[1:]).all() for step in drawn)


def test_pairs_stay_as_often_as_any_other() -> None:
    random, draws = SecureRandom(), 6000
    pairs = Counter(tuple(draw_patients(5, 1.0, random, 2).tolist()) for _ in range(draws))
    assert len(pairs) == 10
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-8


def test_a_negative_cap_is_refused() -> None:
    with pytest.raises(PrivacyError, match="max_patients=-1"):
        draw_patients(5, 0.5, SecureRandom(), -1)


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
