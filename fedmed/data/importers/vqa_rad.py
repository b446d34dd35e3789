"""VQA-RAD (Lau et al., Scientific Data 2018): 315 radiology images, about ten questions each.

    vqa_rad/trainset.json, testset.json   [{image_name, image_organ, question, answer, answer_type, ...}]
    vqa_rad/images/*.jpg

    >>> VqaRad().read(Path("data/vqa_rad"), split="test", split_rule="official").rows_read
    451

The patient is the image. Two split rules, and the files leak under one of them:

| rule     | train                     | val                    | test                  | leak                 |
| -------- | ------------------------- | ---------------------- | --------------------- | -------------------- |
| official | trainset.json without val | a tenth of the images, | testset.json, as      | nearly every test    |
|          |                           | of trainset.json       | papers report         | image is in train    |
| image    | seven tenths of all       | a tenth of all images  | a fifth of all images | none                 |
|          | images                    |                        |                       |                      |

Which image goes where follows from the SHA-256 of its name, so it is the same on every machine and for every seed;
the val images are the same under both rules. Under `image`, rows that repeat another are quarantined: the files hold
hundreds. The official rule keeps them, as papers do.

What is mended: spaces around and inside texts, whole-number answers, `Yes.` as `yes` in closed answers, misspelt
question types. Attributes: organ, answer_type, question_type (sorted, joined by commas), phrase_type.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmed.data.images import is_readable, read_image
from fedmed.data.importers.base import Imported, require_split
from fedmed.data.schema import AnswerType, Example, ImageRef, Split
from fedmed.errors import DataError

TEST_SHARE, VAL_SHARE = 0.2, 0.1
_FILES = ("trainset.json", "testset.json")
_FIELDS = ("image_name", "image_organ", "answer", "answer_type", "question_type", "question", "phrase_type")
_TYPE_TYPOS = {"ATRIB": "ATTRIB", "PRSE": "PRES"}


class VqaRad:
    """Importer of the folder that holds the two JSON files and `images/`."""

    name = "vqa_rad"
    description = "315 CT, MR and X-ray images with 3,515 questions by clinicians (CC0 1.0)"
    filename = "vqa_rad"

    def read(self, path: Path, *, split: str, split_rule: str = "official") -> Imported:
        """The examples of a split, by the rules in the module's table.

        Raises:
            DataError: folder or file missing, not JSON, or a row whose field is missing or of another type.
        """
        kind = require_split(self.name, split, split_rule)
        rows = [row for row in _rows(path) if _split_of(row, split_rule) == split]
        images = _Images(path / "images")
        reasons: Counter[str] = Counter()
        examples: dict[tuple[str, str, str], Example] = {}
        for number, row in enumerate(rows):
            reason = _why_unusable(row) or images.why_unusable(row["image_name"])
            # The official rule keeps repeated rows: a number makes each its own.
            key = (row["image_name"], row["question"].lower(), row["answer"].lower())
            key = key if split_rule == "image" else (*key[:2], str(number))
            if reason or key in examples:
                reasons[reason or "repeats another row"] += 1
            else:
                examples[key] = _example(row, images.data(row["image_name"]), kind)
        return Imported(tuple(examples.values()), len(rows), dict(reasons))


def image_share(image_name: str) -> float:
    """A number in [0, 1) that follows from an image's name alone and decides which split it falls in."""
    return int.from_bytes(hashlib.sha256(f"vqa_rad/{image_name}".encode()).digest()[:8]) / 2**64


def _split_of(row: dict[str, str], rule: str) -> str:
    share = image_share(row["image_name"])
    in_test = row["file"] == "testset.json" if rule == "official" else share < TEST_SHARE
    if in_test:
        return "test"
    return "val" if TEST_SHARE <= share < TEST_SHARE + VAL_SHARE else "train"


def _rows(folder: Path) -> Iterator[dict[str, str]]:
    """All rows of both files, each field a text without stray spaces, with the name of its file."""
    for name in _FILES:
        try:
            rows = json.loads((folder / name).read_bytes())
        except OSError as error:
            raise DataError(
                f"{folder / name} cannot be read: {error.strerror}",
                "see `fedmed data fetch vqa_rad` for where to get it",
            ) from None
        except (ValueError, RecursionError):
            raise DataError(f"{name} is not JSON", "get it again: it may be cut off") from None
        if not isinstance(rows, list):
            raise DataError(f"{name} holds a JSON {type(rows).__name__}, expected a list of rows")
        for number, row in enumerate(rows, start=1):
            yield {"file": name, **_texts(row, f"{name} row {number}")}


def _texts(row: Any, where: str) -> dict[str, str]:
    if not isinstance(row, dict):
        raise DataError(f"{where} is a JSON {type(row).__name__}, expected an object")
    for field in _FIELDS:
        allowed = (str, int) if field == "answer" else (str,)
        if type(row.get(field)) not in allowed:
            found = type(row[field]).__name__ if field in row else "missing"
            raise DataError(f"{where}: {field} is {found}, expected {' or '.join(kind.__name__ for kind in allowed)}")
    return {field: " ".join(str(row[field]).split()) for field in _FIELDS}


def _why_unusable(row: dict[str, str]) -> str:
    """Why a row of the right shape cannot be used; empty when it can."""
    if not row["question"] or not row["answer"]:
        return "question or answer is empty"
    if row["answer_type"].lower() not in ("closed", "open"):
        return "answer type is neither open nor closed"
    return ""


class _Images:
    """The image folder; each file is read and checked once, however many rows ask about it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[bytes, str]] = {}

    def data(self, name: str) -> bytes:
        return self._load(name)[0]

    def why_unusable(self, name: str) -> str:
        return self._load(name)[1]

    def _load(self, name: str) -> tuple[bytes, str]:
        if name not in self._known:
            try:
                data = read_image(ImageRef(path=name), self._folder)
                self._known[name] = (data, "" if is_readable(data) else "image is unreadable")
            except DataError:
                self._known[name] = (b"", "image is missing")
        return self._known[name]


def _example(row: dict[str, str], data: bytes, split: Split) -> Example:
    answer_type: AnswerType = "closed" if row["answer_type"].lower() == "closed" else "open"
    return Example(
        patient=Path(row["image_name"]).stem,
        images=(ImageRef(data=data),),
        question=row["question"],
        answer=_plain_yes_no(row["answer"]) if answer_type == "closed" else row["answer"],
        answer_type=answer_type,
        task="vqa",
        source="vqa_rad",
        split=split,
        attributes={
            "organ": row["image_organ"].upper(),
            "answer_type": answer_type,
            "question_type": ",".join(_question_types(row["question_type"])),
            "phrase_type": row["phrase_type"].lower(),
        },
    )


def _plain_yes_no(answer: str) -> str:
    """`Yes`, `no.` and their like in the one spelling that a model should learn; other answers as they are."""
    plain = answer.lower().rstrip(".")
    return plain if plain in ("yes", "no") else answer


def _question_types(text: str) -> tuple[str, ...]:
    words = (word.strip().upper() for word in text.split(","))
    return tuple(sorted({_TYPE_TYPOS.get(word, word) for word in words if word}))
