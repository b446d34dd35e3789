"""SLAKE (Liu et al., ISBI 2021): 642 CT, MR and X-ray images with questions in English and Chinese, some of which need a
knowledge graph.

    slake/{train,validation,test}.json    [{img_name, question, answer, q_lang, location, modality, answer_type, ...}]
    slake/imgs/xmlab0/source.jpg          one folder an image; `img_name` is the path under imgs/

    >>> Slake("en").read(Path("data/slake"), split="test").rows_read
    1061

One entry a language: `slake_en` and `slake_zh`; rows of the other language are not rows of the entry. The patient is the
image's folder, and the official split is by image; under `image` a row whose image is also in a later split is quarantined.
Attributes: organ (the files' `location`), modality, answer_type, content_type, base_type (`vqa`, or `kvqa` for rows that need
the knowledge graph) and lang.

What real files hold, by readers of them (github.com/xiaoman-zhang/PMC-VQA, src/MedVInT_TD/Dataset/Slake_Dataset.py, which
makes a text of every answer; others that look for `validate.json`, as the authors' archive names it): both names of the
validation file, answers that are numbers, `OPEN` and `CLOSED` in any case and with spaces, `Yes` and `No` with a capital.
Closed answers other than yes and no (61 of the 416 in English) stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.folder_images import FolderImages
from fedmed.data.importers.rows import json_rows, text
from fedmed.data.importers.sifting import ANSWER_TYPE, ELSEWHERE, held_back, plain_yes_no, sifted
from fedmed.data.schema import AnswerType, Example, ImageRef, Split

LANGUAGES = {"en": "English", "zh": "Chinese"}
LANGUAGE = "language is neither en nor zh"
_FILES = {"train": ("train.json",), "val": ("validation.json", "validate.json"), "test": ("test.json",)}
_FIELDS = (
    "img_name",
    "question",
    "answer",
    "q_lang",
    "location",
    "modality",
    "answer_type",
    "content_type",
    "base_type",
)
_KINDS = {"answer": (str, int, float)}


class Slake(Importer):
    """Importer of the folder that holds the three JSON files and `imgs/`; reads the questions of one language."""

    filename = "slake"

    def __init__(self, lang: str) -> None:
        self.lang = lang
        self.name = f"slake_{lang}"
        self.description = f"642 CT, MR and X-ray images with questions in {LANGUAGES[lang]} (CC BY-SA 4.0)"

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The examples of a split in this language.

        Raises:
            DataError: folder or file missing, not JSON, or a row whose field is missing or of another type.
        """
        kind = require_split(self.name, split, split_rule)
        return sifted(self._made(path, kind, split_rule), tally)

    def _made(self, folder: Path, split: Split, rule: str) -> Iterator[Example | str]:
        images = FolderImages(folder / "imgs")
        elsewhere = held_back(split, rule, lambda other: map(_patient, self._rows(folder, other)))
        for row in self._rows(folder, split):
            data, unusable = images.load(row["img_name"])
            reason = _why_unusable(row) or unusable or (ELSEWHERE if _patient(row) in elsewhere else "")
            yield reason or self._example(row, data, split)

    def _rows(self, folder: Path, split: str) -> Iterator[dict[str, str]]:
        """Of a split, each field a text without stray spaces; those of the other language are left out."""
        path = next((found for name in _FILES[split] if (found := folder / name).exists()), folder / _FILES[split][0])
        for number, row in json_rows(path):
            where = f"{path.name} row {number}"
            fields = {field: text(row, field, where, _KINDS.get(field, (str,))) for field in _FIELDS}
            if fields["q_lang"].lower() not in LANGUAGES.keys() - {self.lang}:
                yield fields

    def _example(self, row: dict[str, str], data: bytes, split: Split) -> Example:
        answer_type: AnswerType = "closed" if row["answer_type"].lower() == "closed" else "open"
        return Example(
            patient=_patient(row),
            images=(ImageRef(data=data),),
            question=row["question"],
            answer=plain_yes_no(row["answer"]) if answer_type == "closed" else row["answer"],
            answer_type=answer_type,
            task="vqa",
            source=self.name,
            split=split,
            attributes={
                "organ": row["location"],
                "modality": row["modality"],
                "answer_type": answer_type,
                "content_type": row["content_type"],
                "base_type": row["base_type"].lower(),
                "lang": self.lang,
            },
        )


def _patient(row: dict[str, str]) -> str:
    """The image's folder; for an image outside of one, its name."""
    path = PurePosixPath(row["img_name"])
    return str(path.parent) if path.parent.name else path.stem


def _why_unusable(row: dict[str, str]) -> str:
    if row["q_lang"].lower() not in LANGUAGES:
        return LANGUAGE
    return "" if row["answer_type"].lower() in ("closed", "open") else ANSWER_TYPE
