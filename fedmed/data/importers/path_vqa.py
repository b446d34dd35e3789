"""PathVQA (He et al., 2020): 32,632 questions about 4,289 images of pathology, from textbooks and a digital library.

    path_vqa/train-00000-of-00007-*.parquet       columns image {bytes, path}, question, answer; also under path_vqa/data/
    path_vqa/validation-00000-of-00003-*.parquet
    path_vqa/test-00000-of-00003-*.parquet

    >>> PathVqa().read(Path("data/path_vqa"), split="test").rows_read
    6719

The parquet form is that of huggingface.co/datasets/flaviagiammarino/path-vqa. The original is a pickle, which FedMed never
reads. Images have no name that tells the patient: equal bytes are one patient, since an image has several questions. Under
`image` a row whose image is also in a later split is quarantined. An answer yes or no (in any case, with or without a full
stop) is closed, any other is open; the attribute `answer_type` says so too.

pyarrow is needed: see `fedmed.data.importers.parquet`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmed.data.images import is_readable
from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.folder_images import MISSING, UNREADABLE
from fedmed.data.importers.parquet import parquet_rows, shards
from fedmed.data.importers.rows import text, wrong_field
from fedmed.data.importers.sifting import ELSEWHERE, held_back, plain_yes_no, sifted
from fedmed.data.schema import AnswerType, Example, ImageRef, Split

_PREFIXES = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}
_KEPT = 256  # verdicts on images: the questions about one stand near each other, not always side by side


class PathVqa(Importer):
    """Importer of the folder that holds the parquet files."""

    name = "path_vqa"
    description = "4,289 images of pathology with 32,632 questions, as parquet (MIT)"
    filename = "path_vqa"

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The examples of a split.

        Raises:
            DataError: pyarrow, folder or file missing, not parquet, or a field of another type.
        """
        kind = require_split(self.name, split, split_rule)
        return sifted(self._made(path, kind, split_rule), tally)

    def _made(self, folder: Path, split: Split, rule: str) -> Iterator[Example | str]:
        readable = _Readable()
        elsewhere = held_back(split, rule, lambda other: (_hash(data) for data in _images(folder, other) if data))
        for where, row in _rows(folder, split, ("image", "question", "answer")):
            said, answer, data = text(row, "question", where), text(row, "answer", where), _image(row, where)
            patient = _hash(data)
            reason = "" if data else MISSING
            reason = reason or (ELSEWHERE if patient in elsewhere else "") or readable.why_not(patient, data)
            yield reason or self._example(patient, data, said, plain_yes_no(answer), split)

    def _example(self, patient: str, data: bytes, question: str, answer: str, split: Split) -> Example:
        answer_type: AnswerType = "closed" if answer in ("yes", "no") else "open"
        return Example(
            patient=patient,
            images=(ImageRef(data=data),),
            question=question,
            answer=answer,
            answer_type=answer_type,
            task="vqa",
            source=self.name,
            split=split,
            attributes={"answer_type": answer_type},
        )


class _Readable:
    """Whether images decode, asked once while rows about one stand near each other."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, str] = OrderedDict()

    def why_not(self, key: str, data: bytes) -> str:
        if key not in self._kept:
            self._kept[key] = "" if is_readable(data) else UNREADABLE
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]


def _rows(folder: Path, split: str, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    place = folder / "data" if (folder / "data").is_dir() else folder
    for path in shards(place, _PREFIXES[split]):
        for number, row in parquet_rows(path, columns):
            yield f"{path.name} row {number}", row


def _images(folder: Path, split: str) -> Iterator[bytes]:
    return (_image(row, where) for where, row in _rows(folder, split, ("image",)))


def _image(row: dict[str, Any], where: str) -> bytes:
    """The encoded bytes; none where the row has no image. Raises DataError for a field of another kind."""
    image = row["image"]
    data = image.get("bytes", image) if isinstance(image, dict) else image
    if data is None:
        return b""
    if not isinstance(data, bytes):
        raise wrong_field(row, "image", where, "an object with bytes")
    return data


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
