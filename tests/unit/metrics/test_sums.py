"""Scores as sums: pooled scores are what their formulas give, and their intervals hold what they should."""

from __future__ import annotations

import random

import pytest

from fedmed.metrics.sums import F1, MEAN, RATIO_OR_ZERO, Kind, difference, estimate
from fedmed.metrics.text import bleu_of, bleu_sums, corpus_bleu

BLEU2 = Kind("bleu2", lambda sums: bleu_of(sums, 2))


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["no", "left", "right", "lung", "effusion", "the", "is", "heart", "clear", "mass", "3.5"]
    return [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_of_added_up_sums_is_the_corpus_bleu(order: int) -> None:
    given, truths = [*texts(240, 1), ""], [*texts(240, 2), "left"]
    parts = [bleu_sums(text, truth) for text, truth in zip(given, truths, strict=True)]
    added = [sum(column) for column in zip(*parts, strict=True)]
    known = corpus_bleu(given, [[truth] for truth in truths], order)
    assert bleu_of(added, order) == pytest.approx(known, abs=1e-12) and known > 0


def test_pooled_scores_by_hand() -> None:
    assert estimate([(1.0, 2.0, 2.0), (0.0, 1.0, 0.0)], None, F1).value == pytest.approx(2 / 5)
    assert estimate([(0.0, 0.0, 0.0)], None, F1).value is None
    assert estimate([(0.0, 0.0)], None, RATIO_OR_ZERO).value == 0.0
    assert estimate([(1.0, 1.0), (0.0, 0.0)], None, RATIO_OR_ZERO).value == 1.0


def test_an_undefined_score_has_no_interval_and_undefined_resamples_are_left_out() -> None:
    nothing = estimate([(0.0, 0.0, 0.0)] * 3, None, F1)
    assert (nothing.value, nothing.low, nothing.high, nothing.real) == (None, None, None, False)
    rare = estimate([(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)], ["a", "b"], F1)
    assert (rare.value, rare.low, rare.high) == (1.0, 1.0, 1.0)


def test_the_interval_of_a_pooled_score_holds_the_score_of_a_larger_set() -> None:
    large = [bleu_sums(text, truth) for text, truth in zip(texts(4000, 3), texts(4000, 4), strict=True)]
    truth = estimate(large, None, BLEU2, resamples=2).value
    held = 0
    for part in range(40):
        found = estimate(large[100 * part : 100 * part + 100], None, BLEU2, resamples=200, seed=part)
        assert found.low is not None and found.high is not None and truth is not None
        held += found.low <= truth <= found.high
    assert held >= 32  # 38 expected of 95 % intervals; they are a little narrow


def test_a_difference_draws_the_same_patients_for_both() -> None:
    first = [(float(place % 2), 1.0) for place in range(60)]
    second = [(value + 1, 1.0) for value, _ in first]
    found = difference(first, second, None, MEAN)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0)) and found.real
    assert not difference(first, first, None, MEAN).real
