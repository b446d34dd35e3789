"""ROUGE-L, ROUGE-W and ROUGE-S in which a medical word counts twice: for reports, where "the" is no loss and "left" is. Pure.

    >>> rouge_l_med("the effusion", "effusion"), rouge_l_med("the effusion", "the")
    (0.8, 0.5)

Lin's measures (ROUGE, 2004, sections 3 to 5), each word of weight w(word) as fedmed.metrics.medical_terms gives it, text X and
truth Y, W(X) the sum of the weights of X:

| score       | what is shared, S                                                              | precision, recall             |
| ----------- | ------------------------------------------------------------------------------ | ----------------------------- |
| rouge_l_med | the weight of the heaviest common subsequence                                  | S / W(X), S / W(Y)            |
| rouge_w_med | Lin's weighted longest common subsequence: a run of neighbours of weight u      | g(S / f(W(X))), g(S / f(W(Y))) |
|             | counts f(u) = u^1.2, so that runs count more than the same words apart         | with g the inverse of f       |
| rouge_s_med | pairs of words in order with at most 4 words between, each as often as in both, | S / all of X, S / all of Y    |
|             | of weight w(first) w(second)                                                   |                               |

The score is F1. Where all weights are 1 these are Lin's own ROUGE-L, ROUGE-W-1.2 and ROUGE-S4 (tests compare with rouge-score
and with a second implementation). No published definition of the three "Med" forms was found: papers that give such numbers do
not say which lexicon and weights they used, so these compare with one another and with nothing else.

| edge case                          | score                                           |
| ---------------------------------- | ----------------------------------------------- |
| both texts are without any word    | 0.0, as ROUGE says                              |
| one word                           | rouge_s_med is 0.0: there is no pair            |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from fedmed.metrics.medical_terms import weight
from fedmed.metrics.scores import tokens

EXPONENT = 1.2
SKIP = 4
Weigh = Callable[[str], float]


def rouge_l_med(text: str, truth: str, weigh: Weigh = weight) -> float:
    """In [0, 1]; see the table. `weigh`: what a word counts, above 0."""
    given, expected = tokens(text), tokens(truth)
    row = [0.0] * (len(expected) + 1)
    for word in given:
        before, row = row, [0.0]
        for place, other in enumerate(expected):
            row.append(before[place] + weigh(word) if word == other else max(before[place + 1], row[place]))
    return _f1(row[-1], _weight(given, weigh), _weight(expected, weigh))


def rouge_w_med(text: str, truth: str, weigh: Weigh = weight, exponent: float = EXPONENT) -> float:
    """In [0, 1]; see the table."""
    given, expected = tokens(text), tokens(truth)
    shared = _weighted_common(given, expected, weigh, exponent)
    ways = [_weight(words, weigh) ** exponent for words in (given, expected)]
    if not all(ways):
        return 0.0
    precision, recall = ((shared / whole) ** (1 / exponent) for whole in ways)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def rouge_s_med(text: str, truth: str, weigh: Weigh = weight, skip: int = SKIP) -> float:
    """In [0, 1]; see the table. `skip`: at most so many words between the two of a pair."""
    given, expected = _pairs(tokens(text), skip), _pairs(tokens(truth), skip)
    sums = (_pair_weight(pairs, weigh) for pairs in (given & expected, given, expected))
    return _f1(*sums)


def _weighted_common(given: Sequence[str], expected: Sequence[str], weigh: Weigh, exponent: float) -> float:
    """Lin's dynamic programme: cell = (what the best way so far is worth, weight of the run that ends here)."""
    row = [(0.0, 0.0)] * (len(expected) + 1)
    for word in given:
        before, row = row, [(0.0, 0.0)]
        for place, other in enumerate(expected):
            if word == other:
                worth, run = before[place]
                longer = run + weigh(word)
                row.append((worth + longer**exponent - run**exponent, longer))
            else:
                row.append((max(before[place + 1][0], row[place][0]), 0.0))
    return row[-1][0]


def _pairs(words: Sequence[str], skip: int) -> Counter[tuple[str, str]]:
    return Counter(
        (first, second) for place, first in enumerate(words) for second in words[place + 1 : place + 2 + skip]
    )


def _pair_weight(pairs: Counter[tuple[str, str]], weigh: Weigh) -> float:
    return sum(count * weigh(first) * weigh(second) for (first, second), count in pairs.items())


def _weight(words: Sequence[str], weigh: Weigh) -> float:
    return sum(map(weigh, words))


def _f1(shared: float, given: float, expected: float) -> float:
    return 2 * shared / (given + expected) if shared else 0.0
