"""What importers of rows share: the loop that counts, splits by hash, tables of any kind, images, and checked texts.

    >>> def make(row: Row, where: str) -> list[Example]:
    ...     return [example_of(text(row, "question", where))]
    >>> list(counted(table_rows(Path("cases.jsonl")), make, tally))

| a row                                                        | is                                                    |
| ------------------------------------------------------------ | ----------------------------------------------------- |
| whose `make` raises Unusable                                 | quarantined under that reason                         |
| one of whose examples has more than MAX_CHARACTERS of text   | quarantined: a line of a manifest has a limit         |
| of which a required field is missing or of another type      | a DataError of `make`, which names file, row and field |
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from fedmed.data.importers.base import Tally
from fedmed.data.importers.folder_images import MISSING, FolderImages
from fedmed.data.importers.rows import csv_rows, json_rows, jsonl_rows, text, wrong_field
from fedmed.data.schema import ANSWER_TYPES, IMAGE_MARK, AnswerType, Example, ImageRef, Split
from fedmed.errors import DataError

Row = dict[str, Any]
TEST_SHARE, VAL_SHARE = 0.2, 0.1
OWN = "own"  # so that a patient of a table and of a file of cases is in one split
MAX_CHARACTERS = 150_000
MAX_ANSWERS = 256  # of a conversation: each example repeats all that was said before, so that they grow with its square
TOO_MANY_ANSWERS = f"conversation has more than {MAX_ANSWERS} answers"
EMPTY = "question or answer is empty"
NOBODY = "patient is empty, a word like unknown, or a number that a spreadsheet has rounded"
TWO_SPLITS = "patient is in another split, too"
_TABLES = (".csv", ".tsv", ".json", ".jsonl")
# What spreadsheets, pandas and de-identifiers write for a missing patient: no one person's name.
_NOBODY = ("", "nan", "none", "null", "na", "n/a", "-", "?", "unknown", "anonymous", "anonymized", "anonymised")
_ROUNDED = re.compile(r"\d(?:[.,]\d+)?[eE]\+\d+")  # 1.23457E+11 stands for a million persons
_ENDING = re.compile(r"\.\w{1,5}$")


class Unusable(Exception):
    """A row of the right shape that cannot be used; the message is the reason, and names no row."""


def counted(
    rows: Iterable[tuple[str, Row]], make: Callable[[Row, str], Sequence[Example]], tally: Tally
) -> Iterator[Example]:
    """The examples that `make` makes of each row (given with where it stands); what it refuses is counted."""
    for where, row in rows:
        tally.rows_read += 1
        try:
            examples = make(row, where)
            if any(_characters(example) > MAX_CHARACTERS for example in examples):
                raise Unusable("text is too long")
        except Unusable as reason:
            tally.quarantined[str(reason)] += 1
            continue
        yield from examples


def _characters(example: Example) -> int:
    said = (part for exchange in example.history for part in (exchange.question, exchange.answer))
    noted = (part for pair in example.attributes.items() for part in pair)
    texts = (example.patient, example.question, example.answer, *example.choices, *said, *noted)
    return sum(len(one) for one in texts)


def hash_share(source: str, name: str) -> float:
    """A number in [0, 1) that follows from a name alone: the same on every machine and for every seed."""
    return int.from_bytes(hashlib.sha256(f"{source}/{name}".encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64


def hashed_split(source: str, patient: str) -> Split:
    """Seven tenths of the patients train, a tenth val, a fifth test. OWN is the source of all that is a hospital's own."""
    share = hash_share(source, patient)
    return "test" if share < TEST_SHARE else "val" if share < TEST_SHARE + VAL_SHARE else "train"


class OneSplit:
    """Keeps every patient in one split: that of its first row, whichever split is read."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def holds(self, patient: str, split: str) -> bool:
        """Whether `split` is that of the patient's first row."""
        return self._first.setdefault(patient, split) == split


def find_table(path: Path, names: Sequence[str]) -> Path:
    """The file `path`, or of a folder the first of `names` that it holds, or else its only table.

    Raises:
        DataError: the folder holds none, or several of other names.
    """
    if not path.is_dir():
        return path
    if known := [path / name for name in names if (path / name).is_file()]:
        return known[0]
    others = [file for file in sorted(path.iterdir()) if file.suffix.lower() in _TABLES and file.is_file()]
    if len(others) != 1:
        raise DataError(
            f"{path} holds {len(others)} tables and none named {' or '.join(names)}",
            "give the file itself in place of the folder; see docs/data.md for the layout",
        )
    return others[0]


def table_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a table and where each stands: CSV with commas, semicolons or tabs, a JSON list, or JSON Lines.

    What JSON it is follows from its first character, not from its name. Raises DataError as `rows` does.
    """
    if path.suffix.lower() not in (".json", ".jsonl"):
        rows = csv_rows(path)
    else:
        rows = json_rows(path) if _start(path).lstrip()[:1] == b"[" else jsonl_rows(path)
    return ((f"{path.name} row {number}", row) for number, row in rows)


def _start(path: Path) -> bytes:
    """The first bytes, without a byte order mark; none where the file cannot be read, which its reader tells."""
    try:
        with path.open("rb") as file:
            return file.read(1 << 16).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return b""


class Images:
    """Image files by relative path, looked for in one folder after the other."""

    def __init__(self, *folders: Path) -> None:
        self._folders = [FolderImages(folder) for folder in folders]

    def load(self, name: str) -> ImageRef:
        """The file's bytes. Raises Unusable where its path leaves the folders, or it is missing or does not decode."""
        reason = MISSING
        for folder in self._folders:
            data, reason = folder.load(name.replace("\\", "/"))
            if reason != MISSING:
                break
        if reason:
            raise Unusable(reason)
        return ImageRef(data=data)


def clean(row: Mapping[str, Any], field: str, where: str, kinds: tuple[type, ...] = (str,)) -> str:
    """As `text`, without image marks, and with U+FFFD for half a character, which JSON allows and UTF-8 does not.

    A number that is none (NaN) is an empty text.
    """
    if isinstance(row.get(field), float) and row[field] != row[field]:
        return ""
    return without_marks(whole(text(row, field, where, kinds)))


def optional(row: Mapping[str, Any], field: str, where: str, kinds: tuple[type, ...] = (str,)) -> str:
    """As `clean`; empty where the field is missing or null."""
    return "" if row.get(field) is None else clean(row, field, where, kinds)


def without_marks(value: str) -> str:
    """A text in which no image mark is left: a source's text must not move images."""
    return " ".join(value.replace(IMAGE_MARK, " ").split()) if IMAGE_MARK in value else value


def whole(value: str) -> str:
    """A text that UTF-8 can write."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def texts(row: Mapping[str, Any], field: str, where: str) -> list[str]:
    """A field that is a list of texts, or one text."""
    value = row.get(field)
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise wrong_field(row, field, where, "a list of texts")
    return [whole(one).strip() for one in listed]  # two spaces in a file's name stay two


def patient_of(row: Mapping[str, Any], field: str, where: str) -> str:
    """A patient's id: `12345.0`, as pandas writes whole numbers beside missing ones, is `12345`.

    Raises:
        Unusable: it is empty, or what spreadsheets write in its place, or rounded: nobody knows whose row it is.
    """
    found = patient_id(clean(row, field, where, (str, int, float)))
    if not found:
        raise Unusable(NOBODY)
    return found


def patient_id(written: str) -> str:
    """As `patient_of`, of a text without stray spaces; empty where it names nobody, or more than one."""
    written = unicodedata.normalize("NFC", written)  # as the site's ledger knows patients
    if written.lower() in _NOBODY or _ROUNDED.fullmatch(written):
        return ""
    return written.removesuffix(".0") if re.fullmatch(r"\d+\.0", written) else written


def without_ending(image: str) -> str:
    """An image's path as the name of its patient."""
    return _ENDING.sub("", image)


def answer_type_of(written: str, answer: str, choices: Sequence[str] = ()) -> AnswerType:
    """What the source says; where it says nothing, closed for yes, no and choices. Raises Unusable for another word."""
    if not written:
        return "closed" if choices or answer.lower().rstrip(".") in ("yes", "no") else "open"
    if written.lower() not in ANSWER_TYPES:
        raise Unusable("answer type is neither open nor closed")
    return "closed" if written.lower() == "closed" else "open"


def require_texts(*values: str) -> None:
    """Raises Unusable where one is empty."""
    if not all(values):
        raise Unusable(EMPTY)


def listed(question: str, choices: Sequence[str]) -> str:
    """The question with its choices behind it."""
    if not choices:
        return question
    lettered = " ".join(f"{letter}: {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return f"{question} Choices: {lettered}"
