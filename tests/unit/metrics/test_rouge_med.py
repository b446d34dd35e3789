"""ROUGE with medical words weighing twice: hand-computed, against a second implementation, and what the weights are for."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fedmed.metrics.medical_terms import TERM_WEIGHT, WORDS, weight
from fedmed.metrics.rouge_med import EXPONENT, rouge_l_med, rouge_s_med, rouge_w_med
from fedmed.metrics.scores import tokens

# 240 pairs of drawn words, and what other implementations gave them; see the file's `made_by`.
KNOWN = json.loads((Path(__file__).parent / "reference_scores.json").read_text())
PAIRS = list(zip(KNOWN["texts"], KNOWN["truths"], strict=True))
ALL = (rouge_l_med, rouge_w_med, rouge_s_med)


def alike(word: str) -> float:
    return 1.0


def test_without_weights_they_are_lins_own_scores() -> None:
    assert len(PAIRS) >= 200
    for (text, truth), rouge_l, shared, rouge_s in zip(
        PAIRS, KNOWN["rouge_l"], KNOWN["wlcs"], KNOWN["rouge_s"], strict=True
    ):
        assert rouge_l_med(text, truth, alike) == pytest.approx(rouge_l, abs=1e-9)
        assert rouge_s_med(text, truth, alike) == pytest.approx(rouge_s, abs=1e-9)
        precision, recall = ((shared / len(tokens(one)) ** EXPONENT) ** (1 / EXPONENT) for one in (text, truth))
        rouge_w = 2 * precision * recall / (precision + recall) if shared else 0.0
        assert rouge_w_med(text, truth, alike) == pytest.approx(rouge_w, abs=1e-9)


def test_by_hand() -> None:
    # "effusion" weighs 2, "the" 1: of three shared two, and of three shared one.
    assert rouge_l_med("the effusion", "effusion") == pytest.approx(2 * 2 / (3 + 2))
    assert rouge_l_med("the effusion", "the") == pytest.approx(2 * 1 / (3 + 1))
    # A run of weight 4 against the words apart, which are two runs of 2: f(4) > 2 f(2).
    together, apart = (
        rouge_w_med("left effusion", "left effusion the"),
        rouge_w_med("left the effusion", "left effusion"),
    )
    assert together == pytest.approx(2 * (4 / 5) / (1 + 4 / 5))
    share = 2 * 2**EXPONENT
    precision, recall = (share / 5**EXPONENT) ** (1 / EXPONENT), (share / 4**EXPONENT) ** (1 / EXPONENT)
    assert apart == pytest.approx(2 * precision * recall / (precision + recall))
    assert apart < together
    # Pairs: (left, effusion) 4 of (left, effusion) 4, (left, the) 2, (effusion, the) 2.
    assert rouge_s_med("left effusion", "left effusion the") == pytest.approx(2 * 4 / (4 + 8))
    assert rouge_s_med("a b c d e f", "a f") == pytest.approx(2 / 16)  # four words between: the last that counts
    assert rouge_s_med("a b c d e x f", "a f") == 0.0


@pytest.mark.parametrize("score", ALL)
def test_a_wrong_medical_word_costs_more_than_a_wrong_other_word(score: object) -> None:
    truth = "the left lung is seen"
    assert score("the right lung is seen", truth) < score("a left lung is seen", truth)  # type: ignore[operator]
    assert score("there is effusion", "there is no effusion") < 1  # type: ignore[operator]


@pytest.mark.parametrize("score", ALL)
def test_bounds_and_edges(score: object) -> None:
    measure: object = score
    rng = random.Random(0)
    for _ in range(100):
        one, two = (" ".join(rng.choices(["left", "the", "lung", "no", "is"], k=rng.randint(2, 7))) for _ in range(2))
        assert 0 <= measure(one, two) <= 1  # type: ignore[operator]
        assert measure(one, one) == pytest.approx(1.0)  # type: ignore[operator]
    assert measure("", "") == measure("", "left lung") == measure("left lung", "") == 0.0  # type: ignore[operator]


def test_the_words_are_words_as_scores_see_them() -> None:
    assert {weight(word) for word in ("effusion", "left", "no", "catheter", "worse")} == {TERM_WEIGHT}
    assert {weight(word) for word in ("the", "is", "of", "seen", "")} == {1.0}
    assert [word for word in WORDS if tokens(word) != [word]] == []
