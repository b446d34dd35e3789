"""A hospital's own first format: a table of questions, or a folder of images with a table of their labels.

    patient,image,question,answer,split,organ         table: CSV (comma, semicolon or tab), a JSON list, JSON Lines
    17,ct/0001.png,Is there a mass?,no,train,liver

    filename,label,patient                            image_folder: labels.csv and the images, in it or in images/
    0001.png,pneumonia,17

| column (or other names of it)                | value                                                                    |
| -------------------------------------------- | ------------------------------------------------------------------------ |
| patient (patient_id, subject_id)             | required: who it is, one name for one person. Never guessed               |
| question                                     | required in `table`; "What does this image show?" in `image_folder`       |
| answer (label)                               | required; in `table`, the letter of a choice stands for that choice       |
| image (images, filename, file)               | a path, several with `;` between, or a JSON list; required in             |
|                                              | `image_folder`; `<image>` in the question says where each belongs         |
| answer_type                                  | open or closed; else closed for yes, no, choices and labels               |
| choices                                      | texts with a vertical bar between, or a JSON list                         |
| split                                        | train, val (validation, dev) or test; where empty or missing by hash of   |
|                                              | the patient: seven tenths, a tenth, a fifth. Rule `image`: always by hash  |
| task                                         | as a manifest's; else `choice` with choices, `vqa` without                |
| every other one                              | an attribute under its own name, where it is not empty                    |

Names are compared without case and with `_` for spaces; of several that a table has, the first above counts and the others are
attributes. Where a table has others, a file `columns.json` beside it says
so: {"patient": "MRN", "question": {"value": "Is there a fracture?"}} - the column that holds it, or one value for all rows.

| in a row                                                                  | what happens                           |
| ------------------------------------------------------------------------- | -------------------------------------- |
| a required column missing, a value of another type, an unknown split or task | DataError with row and column           |
| patient empty, `nan` or the like, or rounded (1.2E+11); no question or        | quarantined                            |
| answer (null and `nan` are none); an image that is missing, does not decode   |                                        |
| or lies outside the folder; an answer that is no choice; equal choices        |                                        |
| `Yes`, `NO.` and the like as closed answers                                  | yes, no                                |
| a patient whose first row is in another split                               | quarantined: nobody is in two           |
| the row repeats another (patient, images, question, answer)                  | quarantined                             |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, cast

from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.columns import SCALARS, Columns
from fedmed.data.importers.lettered import right_choice
from fedmed.data.importers.rows import text, wrong_field
from fedmed.data.importers.rowwise import (
    OWN,
    TWO_SPLITS,
    Images,
    OneSplit,
    Row,
    Unusable,
    answer_type_of,
    clean,
    counted,
    find_table,
    hashed_split,
    listed,
    optional,
    patient_of,
    require_texts,
    table_rows,
    texts,
    whole,
    without_marks,
)
from fedmed.data.importers.sifting import plain_yes_no
from fedmed.data.schema import IMAGE_MARK, SPLITS, TASKS, AnswerType, Example, Split, Task
from fedmed.errors import DataError

_SPLITS = {
    **{split: split for split in SPLITS},
    "validation": "val",
    "dev": "val",
    "training": "train",
    "testing": "test",
}


@dataclass(frozen=True)
class Table(Importer):
    """Importer of a table with one question a row.

    Attributes:
        names: of the file, in a folder.
        question: asked where the table has no column of it; empty where it must have one.
        labels: whether each row is a label of an image: the image is required and the answer closed.
    """

    name: str
    description: str
    filename: str
    names: tuple[str, ...]
    question: str = ""
    labels: bool = False

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The rows of a split. Raises DataError as the module's tables say."""
        kind = require_split(self.name, split, split_rule)
        table = find_table(path, self.names)
        columns = Columns(table, self.question, ("image",) if self.labels else ())
        placing, seen = OneSplit(), Seen()

        def rows() -> Iterator[tuple[str, Row]]:
            for where, raw in table_rows(table):
                row = columns.standard(raw, where)
                own = split_of(row, where, split_rule)
                kept = placing.holds(who(row, where), own)
                if own == kind:
                    yield where, row | {"_elsewhere": not kept}

        images = Images(table.parent / "images", table.parent)
        return counted(rows(), lambda row, where: [self._example(row, where, images, seen, kind)], tally)

    def _example(self, row: Row, where: str, images: Images, seen: Seen, split: Split) -> Example:
        patient = patient_of(row, "patient", where)
        if row["_elsewhere"]:
            raise Unusable(TWO_SPLITS)
        names = names_of(row, "image", where)
        if self.labels and not names:
            raise Unusable("image is not named")
        choices = choices_of(row, where)
        answer = chosen(clean(row, "answer", where, (str, int, float)), choices)
        asked = question_of(row, where, len(names))
        require_texts(asked, answer)
        kind = self._kind(row, answer_type_of(optional(row, "answer_type", where), answer, choices))
        answer = said(answer, kind, choices)
        example = Example(
            patient=patient,
            images=tuple(images.load(name) for name in names),
            question=listed(asked, choices),
            answer=answer,
            answer_type=kind,
            task=task_of(row, where, choices),
            source=self.name,
            split=split,
            attributes=({"label": answer} if self.labels else {}) | row["_attributes"],
            choices=choices,
        )
        seen.require_new(example)
        return example

    def _kind(self, row: Row, kind: AnswerType) -> AnswerType:
        return "closed" if self.labels and not row.get("answer_type") else kind


class Seen:
    """What was imported so far, by hash: rows of spreadsheets repeat."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()

    def require_new(self, example: Example) -> None:
        """Raises Unusable where the same was asked of the same images before."""
        digest = hashlib.sha256()
        for part in (example.patient, example.question, example.answer):
            digest.update(part.encode() + b"\0")
        for ref in example.images:
            digest.update(hashlib.sha256(ref.data).digest())
        if digest.digest() in self._hashes:
            raise Unusable("repeats another row")
        self._hashes.add(digest.digest())


def split_of(row: Row, where: str, rule: str) -> Split:
    """The split that a row names, or that its patient's hash gives."""
    own = optional(row, "split", where).lower() if rule == "official" else ""
    if own and own not in _SPLITS:
        raise DataError(f"{where}: split is another word, expected one of {', '.join(_SPLITS)}, or nothing")
    return cast(Split, _SPLITS[own]) if own else hashed_split(OWN, who(row, where))


def who(row: Row, where: str) -> str:
    """The patient; a row of nobody stands for itself until it is quarantined."""
    try:
        return patient_of(row, "patient", where)
    except Unusable:
        return f"nobody {where}"


def names_of(row: Row, field: str, where: str) -> list[str]:
    """The images that a row names: none, one, several."""
    if row.get(field) is None:
        return []
    row = {field: _from_cell(row[field])}
    return [name.strip() for one in texts(row, field, where) for name in one.split(";") if name.strip()]


def _from_cell(value: Any) -> Any:
    """A JSON list that a cell of a CSV file holds; any other value as it is."""
    if not isinstance(value, str) or not value.startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def choices_of(row: Row, where: str) -> tuple[str, ...]:
    """The choices, in order. Raises Unusable where two are the same or one is empty."""
    value = _from_cell(row.get("choices"))
    if value in (None, ""):
        return ()
    listed = value.split("|") if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(type(one) in SCALARS for one in listed):
        raise wrong_field(row, "choices", where, "a list of texts, or one with a vertical bar between two")
    found = tuple(without_marks(" ".join(whole(str(one)).split())) for one in listed)
    if len(set(found)) != len(found) or not all(found) or len(found) > len(ascii_uppercase):
        raise Unusable("two choices are the same, one is empty, or there are more than letters")
    return found


def chosen(answer: str, choices: Sequence[str]) -> str:
    """The answer; where there are choices, the one that it names by text or letter. Raises Unusable where it names none."""
    if not choices:
        return answer
    place = right_choice(choices, label="", answer=answer)
    if isinstance(place, str):
        raise Unusable(place)
    return choices[place]


def said(answer: str, kind: AnswerType, choices: Sequence[str]) -> str:
    """A closed answer yes or no in one spelling."""
    return plain_yes_no(answer) if kind == "closed" and not choices else answer


def question_of(row: Mapping[str, Any], where: str, images: int) -> str:
    """The question; its image marks stay where they are as many as the images."""
    question = whole(text(row, "question", where))
    return question if question.count(IMAGE_MARK) == images else without_marks(question)


def task_of(row: Row, where: str, choices: Sequence[str]) -> Task:
    """The task that a row names, or that follows from its choices."""
    own = optional(row, "task", where).lower()
    if own and own not in TASKS:
        raise DataError(f"{where}: task is another word, expected one of {', '.join(TASKS)}, or nothing")
    return cast(Task, own) if own else "choice" if choices else "vqa"


TABLE = Table(
    name="table",
    description="a table of your own: patient, image, question, answer and more (CSV, JSON, JSON Lines)",
    filename="table.csv",
    names=("table.csv", "data.csv", "table.jsonl", "data.jsonl"),
)
IMAGE_FOLDER = Table(
    name="image_folder",
    description="a folder of images with labels.csv: filename, label, patient",
    filename="image_folder",
    names=("labels.csv", "labels.tsv", "labels.jsonl"),
    question="What does this image show?",
    labels=True,
)
OWN_TABLES: tuple[Importer, ...] = (TABLE, IMAGE_FOLDER)
