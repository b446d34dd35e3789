"""The table of questions, answers and reports that goes with an archive: one row, one example.

    accession,question,answer              or        study,findings,impression
    4711,Is there a nodule?,no                       1.2.3,"The lungs are clear.","Normal."

| column                       | holds                                                                                      |
| ---------------------------- | ------------------------------------------------------------------------------------------ |
| study, accession, patient    | StudyInstanceUID, AccessionNumber, PatientID: the first of them that a row fills is its key; |
|                              | a patient beside another key must be the study's; `unknown` and the like are none           |
| question, answer             | as they stand, but for `Yes`, `NO.` and the like; `nan` is none; answer_type (closed, open)  |
|                              | where given, else closed for yes and no alone                                              |
| findings, impression         | of a row without an answer: a report; where both are columns, `Findings: ...`, `Impression: ...` |
| split                        | train, val or test                                                                          |

Columns are named so in any case, or as `--column ROLE=NAME` says; others are not looked at. CSV with a comma, semicolon
or tab, UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from fedmed.data.importers.columns import given
from fedmed.data.importers.reports import INSTRUCTIONS
from fedmed.data.importers.rows import csv_lists, without_empty_end
from fedmed.data.importers.rowwise import patient_id
from fedmed.data.importers.sifting import plain_yes_no
from fedmed.data.schema import ANSWER_TYPES, SPLITS, AnswerType, Split, Task
from fedmed.errors import ConfigError, DataError

KEYS = ("study", "accession", "patient")
SECTIONS = ("findings", "impression")
ROLES = (*KEYS, "question", "answer", "answer_type", *SECTIONS, "split")
_CLOSED = ("yes", "no")

MOST_CHARACTERS = 100_000  # of a text: far above any report, well within a line of the manifest
NO_KEY = "a row without a study, accession number or patient"
NO_ANSWER = "a row without an answer, findings or impression"
NO_QUESTION = "a row without a question"
BAD_ROW = "a row with more or fewer fields than the header"
TOO_LONG = f"a row with a text of more than {MOST_CHARACTERS} characters"
BAD_SPLIT = f"a row with a split other than {', '.join(SPLITS)}"
BAD_TYPE = f"a row with an answer_type other than {', '.join(ANSWER_TYPES)}"


@dataclass(frozen=True)
class Row:
    """A row that can be used, or why it cannot.

    Attributes:
        key: which of KEYS joins it, and `value` what it says there.
        patient: whose it says that it is; may be empty.
        fault: one of this module's texts; everything else is empty then.
    """

    key: str = ""
    value: str = field(default="", repr=False)
    question: str = field(default="", repr=False)
    answer: str = field(default="", repr=False)
    answer_type: AnswerType = "open"
    task: Task = "vqa"
    split: Split = "train"
    patient: str = field(default="", repr=False)
    fault: str = ""


@dataclass(frozen=True)
class Table:
    """How a table is read.

    Attributes:
        columns: role -> the column's name in the file, for those that are not named as their role.
        question: for rows that have none.
        split: for rows that have none.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    question: str = ""
    split: Split = "train"

    def rows(self) -> Iterator[Row]:
        """Every row but blank ones.

        Raises:
            DataError: no such file, not UTF-8, no column to join by or to learn from, or not readable as CSV.
        """
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                lists = csv_lists(file, self.path.name)
                places = self._places(next(lists, []))
                for fields in lists:
                    if any(entry.strip() for entry in fields):
                        yield self._row(fields, places)
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be read: {error.strerror}", "give the table's CSV file to --reports"
            ) from None

    def _places(self, header: list[str]) -> dict[str, int]:
        """Role -> index of its column, and `width`: how many fields a row has."""
        names = without_empty_end([name.strip().casefold() for name in header], 0)
        if len(set(names)) != len(names):
            raise DataError(
                f"{self.path.name} has two columns of the same name", "expected a header with names that differ"
            )
        for role, name in self.columns.items():
            if name.strip().casefold() not in names:
                raise DataError(
                    f"{self.path.name} has no column {name!r} for {role}", "give a name of its first row to --column"
                )
        wanted = {role: self.columns.get(role, role).strip().casefold() for role in ROLES}
        places = {role: names.index(name) for role, name in wanted.items() if name in names}
        for group, purpose in ((KEYS, "to join by"), (("answer", "findings", "impression"), "to learn from")):
            if not set(group) & set(places):
                raise DataError(
                    f"{self.path.name} has no column {purpose}: expected one of {', '.join(group)} in its first row",
                    f"name yours: --column {group[0]}=NAME",
                )
        return places | {"width": len(names)}

    def _row(self, fields: list[str], places: Mapping[str, int]) -> Row:
        fields = without_empty_end(fields, places["width"])
        if len(fields) != places["width"]:
            return Row(fault=BAD_ROW)
        told = {role: given(fields[places[role]].strip()) if role in places else "" for role in ROLES}
        told["patient"] = patient_id(told["patient"])
        key = next((key for key in KEYS if told[key]), "")
        text = told["answer"] or _report(told, both=set(SECTIONS) <= set(places))
        task: Task = "vqa" if told["answer"] else "report"
        sections = tuple(section for section in SECTIONS if told[section])
        asked = told["question"] or self.question or ("" if task == "vqa" else INSTRUCTIONS.get(sections, ""))
        fault = _fault(told, key, asked, text)
        if fault:
            return Row(fault=fault)
        kind = told["answer_type"].lower() or ("closed" if text.casefold().rstrip(".") in _CLOSED else "open")
        split = cast(Split, told["split"].lower() or self.split)
        text = plain_yes_no(text) if kind == "closed" else text
        return Row(key, told[key], asked, text, cast(AnswerType, kind), task, split, told["patient"])


def parse_columns(pairs: list[str]) -> dict[str, str]:
    """ROLE=NAME of the command line. Raises ConfigError for any other form, every problem at once."""
    columns = dict(pair.partition("=")[::2] for pair in pairs)
    problems = [
        f"--column {role!r} has no name: expected ROLE=NAME" for role, name in columns.items() if not name.strip()
    ]
    problems += [f"--column: no role is called {role!r}" for role in columns if role not in ROLES]
    if problems:
        raise ConfigError(
            problems,
            f"the roles are {', '.join(ROLES)}; for example: --column accession=ACC_NO",
        )
    return columns


def _report(told: Mapping[str, str], *, both: bool) -> str:
    """As the importers of public reports write it: with titles where the table has both sections."""
    parts = {section: told[section] for section in SECTIONS if told[section]}
    return "\n".join(f"{section.capitalize()}: {text}" if both else text for section, text in parts.items())


def _fault(told: Mapping[str, str], key: str, asked: str, text: str) -> str:
    checks = (
        (NO_KEY, not key),
        (NO_ANSWER, not text),
        (NO_QUESTION, not asked),
        (TOO_LONG, max(len(asked), len(text)) > MOST_CHARACTERS),
        (BAD_SPLIT, told["split"].lower() not in ("", *SPLITS)),
        (BAD_TYPE, told["answer_type"].lower() not in ("", *ANSWER_TYPES)),
    )
    return next((fault for fault, holds in checks if holds), "")
