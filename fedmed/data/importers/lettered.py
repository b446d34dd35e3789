"""Multiple-choice rows: choices without their letters, and which of them is right.

    >>> unlettered(" B:right side ", "B")
    'right side'
    >>> right_choice(["left", "right"], label="B", answer="right")
    1

`rowwise.listed` puts them behind the question as MedVInT does (github.com/xiaoman-zhang/PMC-VQA,
src/MedVInT_TD/Dataset/PMC_QA_Dataset.py); the words around both are the base's chat template's. Files say what is right by a
letter, by the text, or by both:

| letter           | text                               | what is right                                        |
| ---------------- | ---------------------------------- | ---------------------------------------------------- |
| one of the list  | none, another spelling, or its own | that letter's choice                                 |
| one of the list  | another choice's                   | nothing: CONTRADICTS                                 |
| none             | a letter alone (`B`)               | that letter's choice, unless a choice's text is `B`  |
| none             | that of exactly one choice         | that choice                                          |
| any other case   |                                    | nothing: NOT_A_CHOICE                                |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

CONTRADICTS = "answer and its letter name different choices"
NOT_A_CHOICE = "answer is none of the choices"
_LETTERED = re.compile(r"\s*\(?([A-Z])\s*[:)]\s*(.*)", re.DOTALL)


def unlettered(text: str, letters: str = ascii_uppercase) -> str:
    """A choice's text without `A:`, `A)` or `(A)` before it, where the letter is one of `letters`.

    `A.` stays: it may begin a name, as in `A. fumigatus`.
    """
    found = _LETTERED.fullmatch(text)
    return found[2].strip() if found and found[1] in letters else text.strip()


def right_choice(choices: Sequence[str], label: str, answer: str) -> int | str:
    """The place of the right choice, or why there is none; `label` and `answer` may each be empty."""
    letters = ascii_uppercase[: len(choices)]
    texts = [choice.casefold() for choice in choices]
    said = unlettered(answer, letters).casefold()
    named = [place for place, text in enumerate(texts) if text == said]
    letter = label.strip(" .:()").upper()
    if not letter and not named:
        letter = answer.strip(" .:()").upper()
    if len(letter) == 1 and letter in letters:
        place = letters.index(letter)
        return place if not named or place in named else CONTRADICTS
    return named[0] if len(named) == 1 and not letter else NOT_A_CHOICE
