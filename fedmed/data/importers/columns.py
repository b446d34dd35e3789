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
_MISSING = ("", "nan", "NaN")
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
        self._values: dict[str, str] = {"question": question} if question else {}
        meant = _mapping(table.with_name(COLUMNS_NAME))
        self._mapped = {folded(name) for name in meant.values() if isinstance(name, str)}
        self._names: dict[str, tuple[str, ...]] = {}  # of each, in the order in which they are looked for
        for standard, others in OTHER_NAMES.items():
            named = meant.get(standard)
            if isinstance(named, str):
                self._names[standard] = (folded(named),)
            elif named:
                self._values[standard] = named["value"]
            else:
                self._names[standard] = tuple(name for name in (standard, *others) if name not in self._mapped)

    def standard(self, row: Row, where: str) -> Row:
        """The row under standard names; the others, as texts, under `_attributes`. What is null or NaN is an empty text."""
        columns = {folded(name): name for name in reversed(row)}  # the first of two that are the same
        if absent := len(self._mapped - columns.keys()):
            raise DataError(f"{where} lacks {absent} of the columns that {COLUMNS_NAME} names")
        held = {
            standard: columns[there[0]]
            for standard, names in self._names.items()
            if (there := [name for name in names if name in columns])
        }
        found: Row = self._values | {standard: given(row[name]) for standard, name in held.items()}
        if missing := [name for name in self._required if name not in found]:
            raise DataError(
                f"{where} has no column {', '.join(missing)}",
                f"expected columns named {', '.join(OTHER_NAMES)}, or {COLUMNS_NAME} beside the table; see docs/data.md",
            )
        others = (name for name in row if name.strip() and name not in held.values() and given(row[name]) != "")
        return found | {"_attributes": {whole(name): whole(text(row, name, where, SCALARS)) for name in others}}


def given(value: Any) -> Any:
    """A value of a row; an empty text for null and NaN, by which pandas means that there is none."""
    missing = value.strip() in _MISSING if isinstance(value, str) else value is None or value != value
    return "" if missing else value


def folded(name: str) -> str:
    """A column's name as names are compared."""
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
