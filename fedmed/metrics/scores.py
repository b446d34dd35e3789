"""Predicted and true answers in, scores out. Pure functions; no torch, no files.

    >>> score(["yes", "left lung"], [closed_example_with_answer_yes, open_example_with_answer_left])
    Scores(num_items=2, closed_accuracy=1.0, open_recall=1.0, open_f1=0.67, accuracy=0.5, majority_accuracy=1.0)

An answer is compared after `normalise_answer`, as a list of tokens:

| text                         | what becomes of it                                                             |
| ---------------------------- | ------------------------------------------------------------------------------ |
| upper case, full-width forms | lower case, NFKC                                                               |
| white space                  | separates tokens, no more                                                      |
| punctuation                  | separates tokens and is dropped: `x-ray.` is `x ray`                           |
| `3.5`, `-2`, `<`, `>`, `%`   | kept: they carry meaning in an answer                                          |
| Chinese characters           | one token each                                                                 |
| number words, commas         | as they are: `two` is not `2`, `1,000` is not `1000`                           |
| articles (a, an, the)        | kept: `A` may be a choice; so `the left` is not an exact match of `left`       |
| nothing is left              | the stripped text itself is compared                                           |
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmed.data.schema import Example
from fedmed.errors import DataError

# Chinese has no spaces between words: as one token, all of an answer would be right or wrong together.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"(?<!\w)-\d+(?:\.\d+)*|\d+(?:\.\d+)+|[{_HAN}]|[^\W{_HAN}]+|[<>=≤≥%+±]")
# A question asked less often than this has no majority answer worth the name: see `majority_accuracy`.
MIN_ASKED = 10


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one evaluation, each in [0, 1]; None where there is no such item.

    Attributes:
        num_items: examples scored.
        closed_accuracy: exact matches among closed items.
        open_recall: mean share of the truth's tokens (as a multiset) that the answer holds, over open items: the
            open score of LLaVA-Med (Li et al., 2023).
        open_f1: mean token F1 over open items; unlike recall it does not reward long answers.
        accuracy: exact matches among all items.
        majority_accuracy: of the best constant answer per question; what a model must beat. See the function.
    """

    num_items: int
    closed_accuracy: float | None
    open_recall: float | None
    open_f1: float | None
    accuracy: float
    majority_accuracy: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scores:
        """What `to_dict` gave. Raises DataError for other keys."""
        names = {item.name for item in dataclasses.fields(cls)}
        if set(data) != names:
            raise DataError(f"scores have the keys {sorted(data)}, expected {sorted(names)}")
        return cls(**data)


def tokens(text: str) -> list[str]:
    """The tokens of an answer, as the table above says."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return _TOKEN.findall(folded) or folded.split()


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """The runs of `n` neighbouring words, in order; none where there are fewer words."""
    return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]


def normalise_answer(text: str) -> str:
    """An answer in the form in which answers are compared: its tokens, one space between."""
    return " ".join(tokens(text))


def exact_match(prediction: str, truth: str) -> bool:
    """Whether the two are the same answer after `normalise_answer`."""
    return tokens(prediction) == tokens(truth)


def token_recall(prediction: str, truth: str) -> float:
    """Share of the truth's tokens that the prediction holds, counted as multisets; 1.0 for an empty truth."""
    expected = tokens(truth)
    return _shared(prediction, truth) / len(expected) if expected else 1.0


def token_f1(prediction: str, truth: str) -> float:
    """Harmonic mean of token precision and recall, as multisets; 1.0 when both are empty, 0.0 when one is."""
    total = len(tokens(prediction)) + len(tokens(truth))
    return 2 * _shared(prediction, truth) / total if total else 1.0


def majority_accuracy(examples: Sequence[Example]) -> float:
    """Exact matches of always giving the most frequent truth of the question; see `majority_answers`."""
    answers = majority_answers(examples)
    return sum(exact_match(given, example.answer) for given, example in zip(answers, examples, strict=True)) / len(
        answers
    )


def majority_answers(examples: Sequence[Example]) -> list[str]:
    """For each example the most frequent truth of its question, in the spelling that comes first.

    The majority is that of these very examples, so no constant answer does better. Questions asked fewer than
    MIN_ASKED times are pooled by answer type: a question asked once would always be "right" by its own majority.
    """
    _require_examples(examples)
    asked = Counter(normalise_answer(example.question) for example in examples)
    groups = []
    for example in examples:
        question = normalise_answer(example.question)
        often = asked[question] >= MIN_ASKED
        groups.append(("question", question) if often else ("pool", example.answer_type))
    truths: dict[tuple[str, str], Counter[str]] = {}
    spelt: dict[str, str] = {}
    for group, example in zip(groups, examples, strict=True):
        form = normalise_answer(example.answer)
        truths.setdefault(group, Counter())[form] += 1
        spelt.setdefault(form, example.answer)
    best = {group: spelt[counts.most_common(1)[0][0]] for group, counts in truths.items()}
    return [best[group] for group in groups]


def score(predictions: Sequence[str], examples: Sequence[Example]) -> Scores:
    """Scores of one prediction per example, in the same order.

    Raises:
        DataError: no examples, or another number of predictions.
    """
    _require_examples(examples)
    if len(predictions) != len(examples):
        raise DataError(f"{len(predictions)} predictions for {len(examples)} examples, expected one each")
    pairs = [(given, example.answer, example.answer_type) for given, example in zip(predictions, examples, strict=True)]
    opened = [(given, truth) for given, truth, kind in pairs if kind == "open"]
    return Scores(
        num_items=len(pairs),
        closed_accuracy=_mean([exact_match(given, truth) for given, truth, kind in pairs if kind == "closed"]),
        open_recall=_mean([token_recall(given, truth) for given, truth in opened]),
        open_f1=_mean([token_f1(given, truth) for given, truth in opened]),
        accuracy=sum(exact_match(given, truth) for given, truth, _ in pairs) / len(pairs),
        majority_accuracy=majority_accuracy(examples),
    )


def _shared(prediction: str, truth: str) -> int:
    """How many tokens the two have in common, each as often as in both."""
    return (Counter(tokens(prediction)) & Counter(tokens(truth))).total()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _require_examples(examples: Sequence[Example]) -> None:
    if not examples:
        raise DataError("there is nothing to score: 0 examples", "choose a data set whose test split is not empty")
