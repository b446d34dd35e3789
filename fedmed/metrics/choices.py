"""Answers to multiple-choice questions: which choice a text names. Pure.

    >>> choice_of("B: Left lung", ["Heart", "Left lung", "Liver"])
    1

| answer                                         | is                                                  |
| ---------------------------------------------- | --------------------------------------------------- |
| `B`, `b.`, `(B)`, `B: Left lung`, `B) anything` | the choice of that letter, where there is one       |
| the text of one choice, as exact_match compares | that choice; of several equal ones, none            |
| a letter and the text of another choice        | none: it contradicts itself                         |
| anything else, or nothing                      | none, which is wrong whatever the truth is          |

Unlike PMC-VQA's evaluators (fedmed.metrics.legacy) nothing is guessed from likeness: "not B" or half a sentence is no choice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedmed.metrics.scores import normalise_answer

_LETTERED = re.compile(r"\s*\(?([A-Za-z])(?:\s*[.:)]\s*(.*))?\s*", re.DOTALL)


def choice_of(answer: str, choices: Sequence[str]) -> int | None:
    """The place of the choice that the answer names, None where it names none."""
    known = [normalise_answer(choice) for choice in choices]
    whole = _place(known, answer)
    lettered = _LETTERED.fullmatch(answer)
    letter = ord(lettered[1].upper()) - ord("A") if lettered else len(choices)
    if lettered is None or letter >= len(choices):
        return whole
    if whole is not None and whole != letter:
        return whole  # a choice whose own text is a single letter
    named = _place(known, lettered[2]) if lettered[2] else None
    return letter if named in (None, letter) else None


def choice_accuracy(answers: Sequence[str], choices: Sequence[Sequence[str]], truths: Sequence[int]) -> float | None:
    """Share of answers that name the right choice; None without questions.

    Args:
        answers: [N] texts; choices: [N] lists of texts; truths: [N] places of the right ones, from 0.
    """
    right = [choice_of(answer, known) == truth for answer, known, truth in zip(answers, choices, truths, strict=True)]
    return sum(right) / len(right) if right else None


def _place(known: Sequence[str], text: str) -> int | None:
    found = [place for place, choice in enumerate(known) if choice == normalise_answer(text)]
    return found[0] if len(found) == 1 else None
