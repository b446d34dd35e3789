"""Noisy sums of patients' scores: what one patient moves, what the noise is, and that the stated error is the true one."""

import math

import numpy as np
import pytest

from fedmed.errors import PrivacyError
from fedmed.privacy.patient_scores import (
    SCORES,
    NoisyScores,
    PatientScores,
    groups_of,
    noisy_scores,
    patient_vector,
    scores_problem,
    sensitivity,
    sums_problem,
    told,
)
from fedmed.privacy.random import InsecureSeededRandom, SecureRandom

ALL = tuple(SCORES)
VQA = ("exact_match", "closed_accuracy", "open_recall", "open_f1")


def drawn(random: np.random.Generator, scores: tuple[str, ...] = ALL) -> PatientScores:
    """A patient of any kind, those at the edges among them."""

    def number() -> float:
        return float(random.choice([0.0, 1.0, 0.5, random.random()]))

    return PatientScores({name: number() for name in scores}, {group: number() for group in groups_of(scores)})


def vector(scores: tuple[str, ...], patients: list[PatientScores]) -> np.ndarray:
    """What noise is added to, read from sums without noise."""
    found = noisy_scores(scores, patients, 0.0, InsecureSeededRandom(0))
    halves = dict(zip(groups_of(scores), np.array(found.weights) / 2, strict=True))
    leads = [total - halves[SCORES[name]] for name, total in zip(scores, found.sums, strict=True)]
    return np.array([*leads, *halves.values()])


@pytest.mark.parametrize("scores", [ALL, VQA, ("exact_match",), ("open_recall", "open_f1")])
def test_adding_or_removing_one_patient_moves_the_sums_by_at_most_the_sensitivity(scores: tuple[str, ...]) -> None:
    random, moved = np.random.default_rng(0), []
    for _ in range(400):
        others = [drawn(random, scores) for _ in range(int(random.integers(0, 30)))]
        moved.append(np.linalg.norm(vector(scores, [*others, drawn(random, scores)]) - vector(scores, others)))
    whole = PatientScores(dict.fromkeys(scores, 1.0), dict.fromkeys(groups_of(scores), 1.0))
    moved.append(np.linalg.norm(vector(scores, [whole]) - vector(scores, [])))
    assert max(moved) <= sensitivity(scores) * (1 + 1e-12)
    assert max(moved) == pytest.approx(sensitivity(scores))  # the bound is met: no noise is wasted


def test_the_vector_is_bounded_in_floating_point_too() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        assert math.hypot(*patient_vector(ALL, drawn(random))) <= sensitivity(ALL) * (1 + 1e-15)


@pytest.mark.parametrize("noise", [0.5, 4.0])
def test_sums_are_unbiased_with_the_variance_that_the_ledger_is_charged_for(noise: float) -> None:
    random, count = InsecureSeededRandom(1), 2000
    patients = [PatientScores({"exact_match": 0.25, "open_recall": 1.0}, {"all": 1.0}) for _ in range(3)]
    scores = ("exact_match", "open_recall")  # nobody has an open question
    found = [noisy_scores(scores, patients, noise, random) for _ in range(count)]
    sums, weights = (np.array([getattr(item, name) for item in found]) for name in ("sums", "weights"))
    deviation = noise * sensitivity(scores)
    columns = [*zip((sums - weights / 2).T, (0.75 - 1.5, 0.0), strict=True), *zip(weights.T / 2, (1.5, 0), strict=True)]
    for values, mean in columns:
        assert abs(values.mean() - mean) < 5 * deviation / math.sqrt(count)
        assert values.var(ddof=1) / deviation**2 == pytest.approx(1, abs=5 * math.sqrt(2 / (count - 1)))
    together = np.corrcoef(np.array([values for values, _ in columns]))
    assert np.abs(together - np.eye(len(columns))).max() < 5 / math.sqrt(count)


@pytest.mark.parametrize("mean", [0.1, 0.5, 0.9])
def test_the_stated_error_is_the_spread_of_what_is_told(mean: float) -> None:
    """Three sites of 400 patients, of whom half have closed questions: the means of 2000 releases spread as they say."""
    scores, noise, count = ("exact_match", "closed_accuracy"), 3.0, 2000
    one = PatientScores({"exact_match": mean, "closed_accuracy": 1 - mean}, {"all": 1.0, "closed": 1.0})
    other = PatientScores({"exact_match": mean}, {"all": 1.0})
    exact = noisy_scores(scores, [*[one] * 200, *[other] * 200], 0.0, InsecureSeededRandom(0))
    random, deviation = np.random.default_rng(2), noise * sensitivity(scores)
    for place, (name, truth) in enumerate([("exact_match", mean), ("closed_accuracy", 1 - mean)]):
        values, errors = [], []
        for _ in range(count):
            halves = random.normal(0, deviation, (3, 2))
            leads = random.normal(0, deviation, (3, 2))
            sites = [
                NoisyScores(tuple(exact.sums + half + lead), tuple(exact.weights + 2 * half))
                for half, lead in zip(halves, leads, strict=True)
            ]
            known = told(scores, name, sites, noise)
            assert known.value is not None and known.error is not None
            values.append(known.value)
            errors.append(known.error)
        spread = np.std(values, ddof=1)
        assert np.mean(errors) == pytest.approx(spread, rel=0.1)
        assert abs(np.mean(values) - truth) < 4 * spread / math.sqrt(count) + 2e-3, place


def test_told_agrees_with_what_the_release_itself_draws() -> None:
    patients = [PatientScores({"exact_match": 0.75}, {"all": 1.0})] * 500
    random = InsecureSeededRandom(3)
    found = [told(("exact_match",), "exact_match", [noisy_scores(("exact_match",), patients, 4.0, random)], 4.0)] * 1
    assert found[0].value == pytest.approx(0.75, abs=5 * (found[0].error or 0))
    assert found[0].error == pytest.approx(4 * math.sqrt(0.5) * math.hypot(1, 0.5) / 500, rel=0.2)


def test_without_noise_the_sums_are_exact() -> None:
    patients = [
        PatientScores({"exact_match": 1 / 3, "closed_accuracy": 1.0}, {"all": 1.0, "closed": 1.0}),
        PatientScores({"exact_match": 1.0}, {"all": 1.0}),
    ]
    found = noisy_scores(("exact_match", "closed_accuracy"), patients, 0.0, InsecureSeededRandom(0))
    assert found.sums == pytest.approx((4 / 3, 1.0), abs=1e-15)
    assert found.weights == (2.0, 1.0)
    assert told(("exact_match", "closed_accuracy"), "exact_match", [found, found], 0.0).error == 0.0


def test_too_few_to_tell_is_no_number() -> None:
    scores = ("exact_match",)
    least = 3 * 2 * 4.0 * sensitivity(scores)
    for weight, is_told in [(least * 0.99, False), (least * 1.01, True), (0.0, False), (-50.0, False)]:
        found = told(scores, "exact_match", [NoisyScores((weight / 2,), (weight,))], 4.0)
        assert (found.value is not None) is is_told
    assert told(scores, "exact_match", [], 4.0).value is None
    assert told(scores, "exact_match", [NoisyScores((0.0,), (0.0,))], 0.0).value is None


def test_what_is_told_lies_between_0_and_1() -> None:
    scores = ("exact_match",)
    for total, value in [(130.0, 1.0), (-30.0, 0.0)]:
        assert told(scores, "exact_match", [NoisyScores((total,), (100.0,))], 4.0).value == value


def test_two_releases_of_the_real_source_differ() -> None:
    patients = [PatientScores({"exact_match": 1.0}, {"all": 1.0})]
    random = SecureRandom()
    assert noisy_scores(("exact_match",), patients, 1.0, random) != noisy_scores(
        ("exact_match",), patients, 1.0, random
    )


@pytest.mark.parametrize(
    "patient",
    [
        PatientScores({"exact_match": 1.01}, {"all": 1.0}),
        PatientScores({"exact_match": math.nan}, {"all": 1.0}),
        PatientScores({"exact_match": 1.0}, {"all": 2.0}),
        PatientScores({"exact_match": 1.0}, {"all": -0.1}),
    ],
)
def test_a_value_out_of_range_is_refused_and_not_named(patient: PatientScores) -> None:
    with pytest.raises(PrivacyError, match=r"outside \[0, 1\]$"):
        noisy_scores(("exact_match",), [patient], 1.0, InsecureSeededRandom(0))


@pytest.mark.parametrize("scores", [(), ("exact_match", "exact_match"), ("loss",)])
def test_other_scores_are_refused(scores: tuple[str, ...]) -> None:
    assert "expected some of exact_match" in scores_problem(scores)
    with pytest.raises(PrivacyError, match="expected some of"):
        noisy_scores(scores, [], 1.0, InsecureSeededRandom(0))


@pytest.mark.parametrize(
    ("sums", "weights", "noise"),
    [
        ((1.0,), (1.0, 1.0), 0.0),
        ((1.0, 1.0), (1.0, 1.0), 0.0),
        ((101.0,), (100.0,), 0.0),
        ((-1.0,), (100.0,), 0.0),
        ((300.0,), (100.0,), 2.0),
        ((0.0,), (-100.0,), 2.0),
        ((5e7,), (1e8,), 2.0),
        ((math.nan,), (100.0,), 2.0),
    ],
)
def test_sums_that_no_honest_site_sends_are_named(
    sums: tuple[float, ...], weights: tuple[float, ...], noise: float
) -> None:
    assert "expected" in sums_problem(("exact_match",), NoisyScores(sums, weights), noise, 10_000_000)


def test_honest_sums_are_never_named() -> None:
    random = InsecureSeededRandom(5)
    rng = np.random.default_rng(5)
    for _ in range(300):
        patients = [drawn(rng) for _ in range(int(rng.integers(0, 5)))]
        assert sums_problem(ALL, noisy_scores(ALL, patients, 2.0, random), 2.0, 10_000_000) == ""
        assert sums_problem(ALL, noisy_scores(ALL, patients, 0.0, random), 0.0, 10_000_000) == ""
