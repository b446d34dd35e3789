"""The columns of a hospital's own table under standard names; see `fedmed.data.importers.tables` for their meaning.

    >>> columns = Columns(Path("labels.csv"), question="What is it?")
    >>> columns.standard({"Patient ID": "17", "Label": "no", "organ": "liver"}, "row 1")
    {'question': 'What is it?', 'patient': '17', 'answer': 'no', '_attributes': {'organ': 'liver'}}

A file `columns.json` beside the table says what else they are called, or what stands in for one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedmed.data.importers.rows import text
from fedmed.data.importers.rowwise import Row, whole
from fedmed.errors import DataError

COLUMNS_NAME = "columns.json"
OTHER_NAMES = {
    "patient": ("patient_id", "subject_id"),
    "image": ("images", "filename", "file"),
    "question": (),
    "answer": ("label",),
    "answer_type": (),
    "choices": (),
    "split": (),
    "task": (),
}
SCALARS = (str, int, float, bool)


class Columns:
    """What the columns of a table are called, and what stands in for one.

    Args:
        table: the file; `columns.json` is looked for beside it.
        question: stands for a question that the table does not have; empty for none.
        required: columns without which a table is refused, beside patient, question and answer.
    """

    def __init__(self, table: Path, question: str, required: tuple[str, ...] = ()) -> None:
        self._required = ("patient", "question", "answer", *required)
        self._known = {name: standard for standard, others in OTHER_NAMES.items() for name in (*others, standard)}
        self._values: dict[str, str] = {"question": question} if question else {}
        self._named: dict[str, str] = {}
        for standard, meant in _mapping(table.with_name(COLUMNS_NAME)).items():
            self._known = {name: known for name, known in self._known.items() if known != standard}
            if isinstance(meant, str):
                self._named[_folded(meant)] = standard
            else:
                self._values[standard] = meant["value"]
        self._known |= self._named

    def standard(self, row: Row, where: str) -> Row:
        """The row under standard names; the others, as texts, under `_attributes`."""
        if absent := len(self._named.keys() - {_folded(name) for name in row}):
            raise DataError(f"{where} lacks {absent} of the columns that {COLUMNS_NAME} names")
        found: Row = dict(self._values)
        attributes: dict[str, str] = {}
        for name, value in row.items():
            standard = self._known.get(_folded(name))
            if standard and standard not in found.keys() - self._values.keys():
                found[standard] = value
            elif value not in (None, "") and name.strip():
                attributes[whole(name)] = whole(text(row, name, where, SCALARS))
        if missing := [name for name in self._required if name not in found]:
            raise DataError(
                f"{where} has no column {', '.join(missing)}",
                f"expected columns named {', '.join(OTHER_NAMES)}, or {COLUMNS_NAME} beside the table; see docs/data.md",
            )
        return found | {"_attributes": attributes}


def _folded(name: str) -> str:
    return "_".join(name.lower().split())


def _mapping(path: Path) -> dict[str, Any]:
    """What `columns.json` says, checked; empty where there is none."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.keys() - OTHER_NAMES.keys():
        raise DataError(f"{path.name} is not a JSON object of some of {', '.join(OTHER_NAMES)}")
    for standard, meant in content.items():
        value = meant.get("value") if isinstance(meant, dict) and len(meant) == 1 else meant
        if not isinstance(value, str) or not value.strip():
            raise DataError(f'{path.name}: {standard} is neither the name of a column nor {{"value": "a text"}}')
    return content
