"""CIDEr-D against the reference implementation's numbers, BLEU and ROUGE against their libraries called directly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from fedmed.errors import DataError
from fedmed.metrics.cider import cider_d
from fedmed.metrics.text import text_scores

# 240 texts of drawn words with one to three references, and what pycocoevalcap 1.2 gives them; see the file's `made_by`.
KNOWN = json.loads((Path(__file__).parent / "cider_pycocoevalcap.json").read_text())
TEXTS, REFERENCES = KNOWN["texts"], KNOWN["references"]


def test_cider_is_what_the_reference_implementation_gives() -> None:
    assert len(TEXTS) >= 200
    assert cider_d(TEXTS, REFERENCES) == pytest.approx(KNOWN["scores"], abs=1e-9)


def test_cider_by_hand() -> None:
    # Two items; every word is of one item alone and weighs log 2, which cancels: both orders are the same as the reference's.
    assert cider_d(["clear lungs", "large heart"], [["clear lungs"], ["large heart"]]) == pytest.approx([5.0, 5.0])
    assert cider_d(["clear lungs here now", "x"], [["clear lungs here now"], ["y"]]) == pytest.approx([10.0, 0.0])
    assert cider_d(["clear"], [["clear"]]) == [0.0]  # alone, nothing weighs anything
    assert cider_d(["", "a"], [["clear"], ["a"]]) == pytest.approx([0.0, 2.5])
    repeated, once = (
        cider_d(["clear clear clear", "clear"], [["clear"], ["heart"]])[0],
        cider_d(["clear", "x"], [["clear"], ["y"]])[0],
    )
    assert repeated < once


def test_all_scores_are_their_libraries_own() -> None:
    found = text_scores(TEXTS, REFERENCES)
    columns = [[known[place] if place < len(known) else None for known in REFERENCES] for place in range(3)]
    for order in (1, 2, 3, 4):
        metric = BLEU(max_ngram_order=order, tokenize="none", force=True)
        assert found[f"bleu{order}"] == pytest.approx(metric.corpus_score(TEXTS, columns).score / 100, abs=1e-12)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    each = [scorer.score_multi(known, text) for text, known in zip(TEXTS, REFERENCES, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert found[name] == pytest.approx(sum(item[name].fmeasure for item in each) / len(each), abs=1e-12)
    assert found["cider_d"] == pytest.approx(sum(KNOWN["scores"]) / len(TEXTS))


def test_all_scores_see_the_same_words() -> None:
    plain, dirty = "no pleural effusion", "NO  pleural effusion."
    whole = text_scores([dirty, "heart"], [[plain], ["heart"]])
    assert [whole[name] for name in ("bleu1", "rouge1", "rougeL")] == pytest.approx([1.0, 1.0, 1.0])
    assert text_scores(["", "heart"], [[plain], ["heart"]])["rouge1"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("texts", "references", "said"),
    [
        ([], [], "0 texts"),
        (["a"], [], "1 texts and 0 lists of references"),
        (["a", "b"], [["a"], []], "text 1 has no reference"),
    ],
)
def test_what_cannot_be_scored_is_named(texts: list[str], references: list[list[str]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        text_scores(texts, references)
