"""MedQA (Jin et al., 2021) and others of its form: questions of a medical examination with 4 or 5 choices, text alone.

    medqa/{train,dev,test}.jsonl                                  5 choices: {question, options, answer, answer_idx, ...}
    medqa/4_options/phrases_no_exclude_{train,dev,test}.jsonl     4 choices

    >>> MEDQA_4.read(Path("data/medqa"), split="test").rows_read
    1273

The folder may also be the one above (`data_clean/`, `questions/` or `US/`), or hold the `phrases_no_exclude` files themselves.
`options` is an object of letters with texts, a list of texts, a list of {key, value}, or the letters are fields of the row.
What is right is told by `answer_idx` (a letter), by `answer` (a text, or a letter), or both: `fedmed.data.importers.lettered`.
All of these occur in files that circulate (GBaker's MedQA-USMLE-4-options, which has no dev file; bigbio's; files with
`"A": ..., "E": ...` beside `question`).

Each question is a patient of its own, by a hash of its text, so that one asked twice is one. Without a dev file a tenth of train
is `val`. Under `image` (no patient in two splits) a question that is also in a later split is quarantined. The attribute
`step` is the files' `meta_info`, where there is one; `label` is the right letter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.lettered import right_choice
from fedmed.data.importers.rows import jsonl_rows, text, wrong_field
from fedmed.data.importers.rowwise import EMPTY, VAL_SHARE, hash_share, listed
from fedmed.data.importers.sifting import ELSEWHERE, held_back, sifted
from fedmed.data.schema import Example, Split

_NAMES = {"train": "train", "val": "dev", "test": "test"}
_ABOVE = ("", "US", "questions/US", "data_clean/questions/US")
_EXPECTED = "texts under A, B, ... or a list of texts"


class MedQa(Importer):
    """Importer of the folder that holds the JSON Lines files.

    Args:
        patterns: paths of the files in the folder, with {} for the split; the first that is there is read.
    """

    filename = "medqa"

    def __init__(self, name: str, description: str, patterns: tuple[str, ...]) -> None:
        self.name = name
        self.description = description
        self._patterns = tuple(f"{above}/{pattern}".lstrip("/") for above in _ABOVE for pattern in patterns)

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The examples of a split.

        Raises:
            DataError: folder or file missing, not JSON Lines, or a field missing or of another type.
        """
        kind = require_split(self.name, split, split_rule)
        return sifted(self._made(path, kind, split_rule), tally)

    def _made(self, folder: Path, split: Split, rule: str) -> Iterator[Example | str]:
        elsewhere = held_back(split, rule, lambda other: (key for _, _, key in self._rows(folder, other)))
        for where, row, key in self._rows(folder, split):
            choices = _choices(row, where)
            right = right_choice(choices, *_said(row, where))
            asked = text(row, "question", where)
            step = text(row, "meta_info", where) if "meta_info" in row else ""
            reason = ("" if asked else EMPTY) or (ELSEWHERE if key in elsewhere else "")
            if reason or isinstance(right, str):
                yield reason or str(right)
            else:
                about = {"label": ascii_uppercase[right]} | ({"step": step} if step else {})
                yield self._example(key, asked, choices, right, split, about)

    def _example(
        self, key: str, question: str, choices: list[str], right: int, split: Split, attributes: Mapping[str, str]
    ) -> Example:
        return Example(
            patient=key,
            images=(),
            question=listed(question, choices),
            answer=choices[right],
            answer_type="closed",
            task="choice",
            source=self.name,
            split=split,
            attributes=attributes,
            choices=tuple(choices),
        )

    def _rows(self, folder: Path, split: str) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Of a split, with where each stands and the hash of its question."""
        dev = self._find(folder, "val")
        path = self._find(folder, split)
        carved = split != "test" and not dev.exists()
        path = self._find(folder, "train") if carved else path
        for number, row in jsonl_rows(path):
            where = f"{path.name} row {number}"
            key = _hash(text(row, "question", where))
            if not carved or (split == "val") == (hash_share("medqa", key) < VAL_SHARE):
                yield where, row, key

    def _find(self, folder: Path, split: str) -> Path:
        paths = [folder / pattern.format(_NAMES[split]) for pattern in self._patterns]
        return next((path for path in paths if path.exists()), paths[0])


def _said(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The letter and the text of the right answer, each empty where the row has none. Raises DataError where it has neither."""
    letter = text(row, "answer_idx", where) if "answer_idx" in row else ""
    said = text(row, "answer", where) if "answer" in row or not letter else ""
    return letter, said


def _choices(row: Mapping[str, Any], where: str) -> list[str]:
    """The texts of the choices, in order. Raises DataError for what is none of the module's forms."""
    options = row.get("options")
    if "options" not in row:
        options = {letter: row[letter] for letter in ascii_uppercase if letter in row}
    if isinstance(options, list) and all(isinstance(item, dict) for item in options):
        pairs = [(item.get("key"), item.get("value")) for item in options]
        options = dict(pairs) if all(isinstance(key, str) for key, _ in pairs) else None
    if isinstance(options, dict):
        letters = ascii_uppercase[: len(options)]
        options = [options.get(letter) for letter in letters] if sorted(options) == list(letters) else None
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(item, str) for item in options):
        raise wrong_field(row, "options", where, _EXPECTED)
    return [" ".join(item.split()) for item in options]


def _hash(question: str) -> str:
    return hashlib.sha256(question.casefold().encode("utf-8", "surrogatepass")).hexdigest()[:16]


_TERMS = "questions of US medical examinations, text alone (MIT)"
MEDQA = MedQa("medqa", f"12,723 five-choice {_TERMS}", ("{}.jsonl",))
MEDQA_4 = MedQa(
    "medqa_4",
    f"the same with four choices: {_TERMS}",
    ("4_options/phrases_no_exclude_{}.jsonl", "phrases_no_exclude_{}.jsonl"),
)
