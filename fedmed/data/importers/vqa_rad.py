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
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.folder_images import FolderImages
from fedmed.data.importers.rows import json_rows, text
from fedmed.data.importers.rowwise import EMPTY
from fedmed.data.importers.sifting import ANSWER_TYPE, plain_yes_no, sifted
from fedmed.data.schema import AnswerType, Example, ImageRef, Split

TEST_SHARE, VAL_SHARE = 0.2, 0.1
_FILES = ("trainset.json", "testset.json")
_FIELDS = ("image_name", "image_organ", "answer", "answer_type", "question_type", "question", "phrase_type")
_KINDS = {"answer": (str, int)}
_TYPE_TYPOS = {"ATRIB": "ATTRIB", "PRSE": "PRES"}


class VqaRad(Importer):
    """Importer of the folder that holds the two JSON files and `images/`."""

    name = "vqa_rad"
    description = "315 CT, MR and X-ray images with 3,515 questions by clinicians (CC0 1.0)"
    filename = "vqa_rad"

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The examples of a split, by the rules in the module's table.

        Raises:
            DataError: folder or file missing, not JSON, or a row whose field is missing or of another type.
        """
        kind = require_split(self.name, split, split_rule)
        rows = (row for row in _rows(path) if _split_of(row, split_rule) == split)
        return sifted(_made(rows, FolderImages(path / "images"), kind, once=split_rule == "image"), tally)


def _made(rows: Iterable[dict[str, str]], images: FolderImages, split: Split, *, once: bool) -> Iterator[Example | str]:
    """Of each row its example, or why it makes none; with `once`, of each image, question and answer only the first."""
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        data, unusable = images.load(row["image_name"])
        key = (row["image_name"], row["question"].lower(), row["answer"].lower())
        reason = _why_unusable(row) or unusable or ("repeats another row" if once and key in seen else "")
        if not reason:
            seen.add(key)
        yield reason or _example(row, data, split)


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
        for number, row in json_rows(folder / name):
            where = f"{name} row {number}"
            yield {"file": name} | {field: text(row, field, where, _KINDS.get(field, (str,))) for field in _FIELDS}


def _why_unusable(row: dict[str, str]) -> str:
    """Why a row of the right shape cannot be used; empty when it can."""
    if not row["question"] or not row["answer"]:
        return EMPTY
    if row["answer_type"].lower() not in ("closed", "open"):
        return ANSWER_TYPE
    return ""


def _example(row: dict[str, str], data: bytes, split: Split) -> Example:
    answer_type: AnswerType = "closed" if row["answer_type"].lower() == "closed" else "open"
    return Example(
        patient=Path(row["image_name"]).stem,
        images=(ImageRef(data=data),),
        question=row["question"],
        answer=plain_yes_no(row["answer"]) if answer_type == "closed" else row["answer"],
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


def _question_types(listed: str) -> tuple[str, ...]:
    words = (word.strip().upper() for word in listed.split(","))
    return tuple(sorted({_TYPE_TYPOS.get(word, word) for word in words if word}))
