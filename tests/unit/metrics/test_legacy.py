"""Published scores with their faults: hand-computed cases that show each, and parity with NLTK where that computed them."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import pytest
from nltk.translate.bleu_score import sentence_bleu

from fedmed.metrics import legacy, legacy_coco

WORDS = "the left right lung no yes abnormal opacity effusion x-ray pleural, 1,000 two none mass. dont of in a"
PAIRS = 300


def texts(count: int) -> list[tuple[str, str]]:
    """Pairs of up to nine words each, some of them equal."""
    random.seed(5)
    drawn = [" ".join(random.choices(WORDS.split(), k=random.randint(1, 9))) for _ in range(2 * count)]
    return [(answer, random.choice([answer, truth])) for answer, truth in zip(drawn[::2], drawn[1::2], strict=True)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The X-ray shows none.", "x ray shows 0"),
        ("left - sided", "left sided"),
        ("a,b", "b"),  # the comma separates, and "a" is an article then
        ("3.5 cm, two masses", "3.5 cm 2 masses"),
        ("1,000 x-rays", "1000 xrays"),  # a thousand's comma makes every mark vanish without a space
        ("I dont know", "i don't know"),
        ("a" + "." * 33, "a."),  # the 33rd period stays
        ("", ""),
    ],
)
def test_words(text: str, words: str) -> None:
    assert legacy.vqa_words(text) == words


def test_closed_does_not_count_a_wrong_yes_or_no() -> None:
    assert legacy.llava_med_closed([("no", "yes"), ("yes", "yes")]) == 1.0
    assert legacy.llava_med_closed([("maybe", "yes"), ("yes", "yes")]) == 0.5
    assert legacy.llava_med_closed([("It is abnormal", "no")]) == 1.0  # "no" is in "abnormal"
    assert legacy.llava_med_closed([("left", "left")]) == 0.0  # a closed question whose answer is neither
    assert legacy.llava_med_closed([("no", "yes")]) == 0.0  # nothing was counted


def test_exact_match_is_precision() -> None:
    assert legacy.llava_med_exact_match("left lung", "left") == 0.5
    assert legacy.llava_med_exact_match("left", "left lung") == 1.0
    assert legacy.llava_med_exact_match("left left", "left") == 0.5
    assert legacy.llava_med_exact_match("the", "left") == 0.0


def test_a_repeated_word_counts_as_often_as_the_answer_has_it() -> None:
    assert legacy.llava_med_f1("left left left", "left right") == (pytest.approx(6 / 7), 1.0, 0.75)
    assert legacy.llava_med_f1("left", "right") == (0.0, 0.0, 0.0)
    assert legacy.llava_med_f1("", "right") == (0.0, 0.0, 0.0)


def test_open_accuracy_takes_the_nearest_candidate() -> None:
    candidates = ["right lung", "left lung", "left"]
    assert legacy.llava_med_open_accuracy("in the left lung", "left lung", candidates)
    assert not legacy.llava_med_open_accuracy("in the left lung", "left", candidates)  # it comes later, as near
    assert legacy.llava_med_open_accuracy("nothing of it", "right lung", candidates)  # none is near: the first
    with pytest.raises(ValueError, match="empty"):
        legacy.llava_med_open_accuracy("left", "left", [])


def test_choices_by_likeness() -> None:
    choices = ["A: liver", "B: left lung", "C: heart", "D: left kidney"]
    assert legacy.pmc_vqa_choice("left lung it is not", "B: left lung", choices)
    assert legacy.pmc_vqa_last_character("the answer is not B", "B: left lung", choices)
    assert legacy.pmc_vqa_choice("", "#", choices)  # neither is like any choice
    assert legacy.pmc_vqa_letter("B", 1, 4) and legacy.pmc_vqa_letter("B: left lung", 1, 4)
    assert legacy.pmc_vqa_letter("B: Aorta", 0, 4)  # its first capital of the alphabet is A
    assert not legacy.pmc_vqa_letter("left lung", 1, 4)  # no capital: like no letter
    assert not legacy.pmc_vqa_letter("E", 4, 4)  # it has no fifth
    with pytest.raises(IndexError):
        legacy.pmc_vqa_last_character("", "B: left lung", choices)


def test_bleu_of_characters() -> None:
    assert legacy.prefix_bleu1("left", "felt") == 1.0
    assert legacy.prefix_bleu1("e", "left") == 1.0  # nothing is too short
    assert legacy.prefix_bleu1("eee", "eee") == pytest.approx(1 / 3)  # the right answer, each letter once
    assert legacy.prefix_bleu1("", "left") == 0.0
    assert legacy.prefix_accuracy("Yes", "yes") and not legacy.prefix_accuracy("yes.", "yes")


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_bleu_is_what_nltk_computed(order: int) -> None:
    weights = [(0.25,) * 4, (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)][order]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK says that it takes the smallest float for no n-gram in common
        for answer, truth in texts(PAIRS):
            given, expected = legacy.vqa_words(answer), legacy.vqa_words(truth)
            known = sentence_bleu([expected.split()], given.split(), weights=weights)
            assert legacy.llava_med_bleu(answer, truth, order) == pytest.approx(known, abs=1e-12)


def test_bleu_of_characters_is_what_nltk_computed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for answer, truth in texts(PAIRS):
            known = sentence_bleu(truth, answer, weights=(1, 0, 0, 0))  # as published: strings where lists belong
            assert legacy.prefix_bleu1(answer, truth) == pytest.approx(known, abs=1e-12)


def test_coco_scores_are_what_pycocoevalcap_computed() -> None:
    known = json.loads((Path(__file__).parent / "reference_scores.json").read_text())
    pairs = list(zip(known["texts"], known["truths"], strict=True))
    parts = [legacy_coco.coco_bleu_sums(*pair) for pair in pairs]
    sums = [sum(column) for column in zip(*parts, strict=True)]
    assert [legacy_coco.coco_bleu(sums, order) for order in (1, 2, 3, 4)] == pytest.approx(known["coco_bleu"], abs=1e-9)
    rouge = [legacy_coco.coco_rouge_l(*pair) for pair in pairs]
    assert rouge == pytest.approx(known["coco_rouge_l"], abs=1e-9)


def test_coco_words_are_what_stands_between_spaces() -> None:
    assert legacy_coco.coco_rouge_l("no effusion.", "no effusion") == pytest.approx(0.5)
    assert legacy_coco.coco_rouge_l("no", "no effusion") == pytest.approx((1 + 1.44) * 0.5 / (0.5 + 1.44))
    assert legacy_coco.coco_rouge_l("", "no") == 0.0
    assert legacy_coco.coco_bleu(legacy_coco.coco_bleu_sums("no effusion.", "no effusion"), 1) == pytest.approx(0.5)
    assert legacy_coco.coco_bleu(legacy_coco.coco_bleu_sums("no effusion.", "no effusion"), 2) < 1e-7  # not smoothed
