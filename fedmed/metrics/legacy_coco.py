"""BLEU and ROUGE-L of report generation papers: pycocoevalcap's, as R2Gen and those after it call it. Pure functions.

    >>> coco_rouge_l("no effusion.", "no effusion")              # a full stop is part of its word
    0.5

Never the number to report: beside each stands the corrected one (fedmed.metrics.text).

| legacy           | what is wrong with it                                                                 | corrected      |
| ---------------- | ------------------------------------------------------------------------------------- | -------------- |
| coco_bleu 1 to 4 | words are what stands between spaces, so "effusion." is not "effusion"; an order      | bleu1 to bleu4 |
|                  | without any match is 1e-15 instead of smoothed                                        |                |
| coco_rouge_l     | the same words; recall weighs 1.44 times what precision does                          | rougeL         |

Source: tylin/coco-caption, bleu_scorer.py and rouge.py (Chen et al., arXiv 1504.00325). Its CIDEr-D is fedmed.metrics.cider, which
takes the words of fedmed.metrics.scores. METEOR is a Java program there and is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from fedmed.metrics.scores import ngrams
from fedmed.metrics.sums import Sums

_ORDERS = (1, 2, 3, 4)
_SMALL, _TINY, _BETA = 1e-9, 1e-15, 1.2


def coco_bleu_sums(text: str, truth: str) -> Sums:
    """What one text gives to `coco_bleu`: its length, the truth's, n-grams in common of each order, and all of them."""
    given, expected = text.split(), truth.split()
    common = [(Counter(ngrams(given, n)) & Counter(ngrams(expected, n))).total() for n in _ORDERS]
    known = [max(0, len(given) - n + 1) for n in _ORDERS]
    return (float(len(given)), float(len(expected)), *map(float, common), *map(float, known))


def coco_bleu(sums: Sequence[float], order: int) -> float:
    """BLEU-`order` of a corpus, of added up `coco_bleu_sums`."""
    logs = [math.log((sums[2 + n] + _TINY) / (sums[6 + n] + _SMALL)) for n in range(order)]
    ratio = (sums[0] + _TINY) / (sums[1] + _SMALL)
    return math.exp(math.fsum(logs) / order + min(0.0, 1 - 1 / ratio))


def coco_rouge_l(text: str, truth: str) -> float:
    """ROUGE-L of one text with one truth."""
    given, expected = text.split(" "), truth.split(" ")
    shared = _common(given, expected)
    precision, recall = shared / len(given), shared / len(expected)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision) if shared else 0.0


def _common(given: Sequence[str], expected: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(expected) + 1)
    for word in given:
        before, row = row, [0]
        for place, other in enumerate(expected):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[place]))
    return row[-1]
