"""CIDEr-D: how much a text says what its references agree on. Pure (Vedantam et al., CVPR 2015, arXiv 1411.5726, section 7).

    >>> round(cider_d(["clear lungs"], [["clear lungs"]])[0], 1)
    0.0
    >>> scores = cider_d(["clear lungs", "large heart"], [["clear lungs"], ["a large heart"]])
    >>> scores[0] > scores[1] > 0
    True

For n of 1 to 4, each n-gram weighs its count times log(items / items whose references hold it). A text's score against one
reference is the mean over n of

    10 exp(-(l_text - l_reference)^2 / 72) sum_g min(w_text(g), w_reference(g)) w_reference(g) / (|w_text| |w_reference|)

and against several their mean, from 0 to 10: the clipping and the Gaussian are what the D adds, against texts that repeat words.

| edge case                              | score                                                            |
| -------------------------------------- | ---------------------------------------------------------------- |
| one item alone                         | 0: every n-gram is in all items, and weighs nothing              |
| shorter than n words, on either side   | that n adds 0: four words are needed for a full score            |
| the same text in all items             | 0 for all of them: it tells none apart                           |
| an n-gram that no reference holds      | weighs log(items): it lengthens the text's vector and lowers it  |

The weights come from the references that are scored, so scores of two data sets are not to be compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

from fedmed.errors import DataError
from fedmed.metrics.scores import ngrams, tokens

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0
Gram = tuple[str, ...]


def cider_d(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """One score a text, in [0, 10]; the data set's is their mean.

    Args:
        texts: [N]; references: [N] lists of one or more true texts.

    Raises:
        DataError: another number of references than of texts, or a text without any.
    """
    if len(texts) != len(references):
        raise DataError(f"{len(texts)} texts and {len(references)} lists of references, expected one list a text")
    if empty := [place for place, known in enumerate(references) if not known]:
        raise DataError(f"text {empty[0]} has no reference, expected one or more")
    known = [[tokens(text) for text in several] for several in references]
    weights = _Weights(known)
    return [_score(tokens(text), own, weights) for text, own in zip(texts, known, strict=True)]


class _Weights:
    """log(items / items that hold it) of each n-gram of the references."""

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        held = (set(chain.from_iterable(map(_all_ngrams, several))) for several in references)
        self._items = math.log(max(1, len(references)))
        self._held: Counter[Gram] = Counter(chain.from_iterable(held))

    def vector(self, words: Sequence[str], n: int) -> dict[Gram, float]:
        """n-gram -> count times weight."""
        counts = Counter(ngrams(words, n))
        return {gram: count * (self._items - math.log(max(1, self._held[gram]))) for gram, count in counts.items()}


def _score(words: Sequence[str], references: Sequence[Sequence[str]], weights: _Weights) -> float:
    total = 0.0
    for reference in references:
        near = math.exp(-((len(words) - len(reference)) ** 2) / (2 * SIGMA**2))
        total += near * sum(_cosine(weights.vector(words, n), weights.vector(reference, n)) for n in ORDERS)
    return 10 * total / (len(ORDERS) * len(references))


def _cosine(text: dict[Gram, float], reference: dict[Gram, float]) -> float:
    """Of the text, clipped to the reference; 0.0 where one of them is nothing."""
    norms = math.hypot(*text.values()) * math.hypot(*reference.values())
    shared = math.fsum(
        min(weight, reference[gram]) * reference[gram] for gram, weight in text.items() if gram in reference
    )
    return shared / norms if norms else 0.0


def _all_ngrams(words: Sequence[str]) -> list[Gram]:
    return [gram for n in ORDERS for gram in ngrams(words, n)]
