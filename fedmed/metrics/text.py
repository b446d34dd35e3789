"""Scores of longer texts, such as reports, against one or more true ones: BLEU, ROUGE, CIDEr-D.

    >>> found = text_scores(["clear lungs", "large heart"], [["clear lungs"], ["large left heart"]])
    >>> round(found["rouge1"], 2), round(found["bleu1"], 2)
    (0.9, 0.78)

BLEU and ROUGE are sacrebleu's and rouge-score's, given the tokens of fedmed.metrics.scores, so that all scores see the same words.

| score                  | is                                                                                   | range   |
| ---------------------- | ------------------------------------------------------------------------------------ | ------- |
| bleu1 to bleu4         | of the whole corpus: geometric mean of the clipped 1- to n-gram precisions times the | 0 to 1  |
|                        | brevity penalty (Papineni et al., ACL 2002); an order without any match is smoothed  |         |
|                        | (`exp`, sacrebleu's default: Post, WMT 2018), one longer than all texts makes it 0:  |         |
|                        | bleu2 of right answers of one word is 0                                              |         |
| rouge1, rouge2, rougeL | mean F1 of n-grams and of the longest common subsequence (Lin, 2004), no stemming;   | 0 to 1  |
|                        | of several references the one with the best F1                                       |         |
| cider_d                | fedmed.metrics.cider, mean                                                           | 0 to 10 |

None of them knows what a negation is: "no effusion" and "effusion" are half the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedmed.errors import DataError
from fedmed.metrics.cider import cider_d
from fedmed.metrics.scores import tokens
from fedmed.metrics.sums import Sums

BLEU_ORDERS = (1, 2, 3, 4)
ROUGE = ("rouge1", "rouge2", "rougeL")


def text_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """All scores of the table by name.

    Args:
        texts: [N]; references: [N] lists of one or more true texts.

    Raises:
        DataError: no texts, another number of references, or a text without any.
    """
    if not texts:
        raise DataError("there is nothing to score: 0 texts", "choose a data set whose test split is not empty")
    each = cider_d(texts, references)  # looks at the arguments for all of them
    bleu = {f"bleu{order}": corpus_bleu(texts, references, order) for order in BLEU_ORDERS}
    return bleu | mean_rouge(texts, references) | {"cider_d": sum(each) / len(each)}


def corpus_bleu(texts: Sequence[str], references: Sequence[Sequence[str]], order: int) -> float:
    """BLEU-`order`, in [0, 1]."""
    from sacrebleu.metrics.bleu import BLEU

    # The first reference of every text, then the second of every text; None where there is none, which its type does not say.
    most = max(len(known) for known in references)
    columns: list[Any] = [
        [_joined(known[place]) if place < len(known) else None for known in references] for place in range(most)
    ]
    metric = BLEU(max_ngram_order=order, tokenize="none", force=True)
    return float(metric.corpus_score([_joined(text) for text in texts], columns).score) / 100


def bleu_sums(text: str, truth: str) -> Sums:
    """What one text gives to the corpus BLEU of any order: its length, the truth's, 1- to 4-grams in common, and all."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(max_ngram_order=max(BLEU_ORDERS), tokenize="none", force=True)
    found = metric.corpus_score([_joined(text)], [[_joined(truth)]])
    return (float(found.sys_len), float(found.ref_len), *map(float, found.counts), *map(float, found.totals))


def bleu_of(sums: Sequence[float], order: int) -> float:
    """BLEU-`order`, in [0, 1], of added up `bleu_sums`: what `corpus_bleu` gives for their texts."""
    from sacrebleu.metrics.bleu import BLEU

    lengths, counts, totals = sums[:2], sums[2 : 2 + order], sums[6 : 6 + order]
    score = BLEU.compute_bleu(
        correct=[round(count) for count in counts],
        total=[round(total) for total in totals],
        sys_len=round(lengths[0]),
        ref_len=round(lengths[1]),
        smooth_method="exp",
        max_ngram_order=order,
    )
    return float(score.score) / 100


def each_rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """F1 of each of ROUGE for every text, in [0, 1]."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), tokenizer=_Tokens())
    each = [scorer.score_multi(list(known), text) for text, known in zip(texts, references, strict=True)]
    return [{name: float(found[name].fmeasure) for name in ROUGE} for found in each]


def mean_rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Mean F1 of each of ROUGE, in [0, 1]."""
    each = each_rouge(texts, references)
    return {name: sum(found[name] for found in each) / len(each) for name in ROUGE}


class _Tokens:
    """What rouge-score calls a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


def _joined(text: str) -> str:
    return " ".join(tokens(text))
