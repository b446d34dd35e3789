"""Reports on studies of one or more images: R2Gen's annotation files, and tables of findings and impression.

| importer              | reads                                                                                           |
| --------------------- | ----------------------------------------------------------------------------------------------- |
| `iu_xray`, `mimic_cxr` | R2Gen (Chen et al., EMNLP 2020): annotation.json, {train, val, test: [{id, report, image_path:    |
|                       | [...], split}]}, in MIMIC-CXR also subject_id and study_id; images/ beside it                     |
| `findings_impression` | a table with the columns uid, findings, impression and perhaps indication, Problems, split, a      |
|                       | patient (patient, patient_id, subject_id); images in a column (filenames, image_path; `;` between  |
|                       | several; names are compared without case, `_` for spaces)                                          |
|                       | or in a second table of uid, filename, projection, named like the first with `projections`         |
|                       | for `reports`, as Open-i's (Demner-Fushman et al., JAMIA 2016) on Kaggle                           |

An example is a study: all its images, frontal ones first, a fixed instruction, and the report as answer. Where the
study has an indication the question opens with it; the instruction asks for the sections that the report has.

Patient: subject_id (patient); else the subject in a MIMIC path (`p10/p10000032/s50414267/`); else the study: the report's
number in an IU id (`CXR2384_IM-0942` is CXR2384), or the uid. IU X-Ray does not say which studies show the same person. Of a
table that has a column of patients, a row without one is nobody's, and nobody is in two splits.

Splits: R2Gen's own, the table's column; by hash of the patient where there is none, and under the rule `image`.

What de-identification left stays, since published scores compare with it: Open-i's four X, MIMIC's underscores. Runs of
them become one, and a text of nothing else counts as empty. Attribute `deidentified`: whether the report has any.

| in the real files                                                            | what happens                         |
| ---------------------------------------------------------------------------- | ------------------------------------ |
| findings or impression empty (`findings` of every seventh study of Open-i)     | the report is the other alone          |
| both empty                                                                     | quarantined                            |
| no image, an image that is not there (R2Gen issue 1), one of several           | quarantined, the study as a whole      |
| `nan` in place of an empty text                                                | empty                                  |
| MIMIC paths with `files/` before them or not                                   | both are found                         |
| a `split` that differs from the list it stands in                              | quarantined                            |
| of a table: no patient in their column; another split than in his first row    | quarantined                            |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.columns import OTHER_NAMES, folded
from fedmed.data.importers.rows import json_rows
from fedmed.data.importers.rowwise import (
    NOBODY,
    OWN,
    TWO_SPLITS,
    Images,
    OneSplit,
    Row,
    Unusable,
    clean,
    counted,
    find_table,
    hashed_split,
    optional,
    patient_id,
    table_rows,
    texts,
)
from fedmed.data.schema import SPLITS, Example, Split
from fedmed.errors import DataError

INSTRUCTIONS = {
    ("findings",): "Write the findings of the report on this study.",
    ("impression",): "Write the impression of the report on this study.",
    ("findings", "impression"): "Write the findings and the impression of the report on this study.",
}
_LEFT = "X" * 4
_DEIDENTIFIED = re.compile(rf"(?:{_LEFT}|_{{2,}})(?:[\s,/.]*(?:{_LEFT}|_{{2,}}))*")
_IN_PATH = re.compile(r"(?:^|/)(p\d{8})/")
_IU = re.compile(r"CXR\d+(?=_|$)")
_UIDS, _FILES = ("uid", "study_id", "id"), ("filenames", "image_path")
_PATIENTS = ("patient", *OTHER_NAMES["patient"])


@dataclass(frozen=True)
class R2Gen(Importer):
    """Importer of a folder with R2Gen's annotation.json and the images."""

    name: str
    description: str
    filename: str

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The studies of a split.

        Raises:
            DataError: file missing, not JSON, without one of the three lists, or a row whose field is missing or of
                another type.
        """
        kind = require_split(self.name, split, split_rule)
        table = find_table(path, ("annotation.json",))
        images = _images(table.parent)
        return counted(
            self._rows(table, kind, split_rule), lambda row, where: self._examples(row, where, images, kind), tally
        )

    def _rows(self, table: Path, split: Split, rule: str) -> Iterator[tuple[str, Row]]:
        for listed in (split,) if rule == "official" else SPLITS:
            for number, row in json_rows(table, under=listed):
                where = f"{table.name} {listed} row {number}"
                if rule == "official" or hashed_split(self.name, _patient(row, where)) == split:
                    yield where, row | {"listed": listed}

    def _examples(self, row: Row, where: str, images: Images, split: Split) -> list[Example]:
        if row.get("split") not in (None, row["listed"]):
            raise Unusable("split differs from the list it stands in")
        sections = {"findings": _section(row, "report", where, required=True)}
        return [_study(self.name, row, where, sections, texts(row, "image_path", where), images, split)]


@dataclass(frozen=True)
class FindingsImpression(Importer):
    """Importer of a table of reports, with images named in it or in a second table."""

    name: str = "findings_impression"
    description: str = "a table of findings and impression with the images of each study, as Open-i's"
    filename: str = "findings_impression"

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The studies of a split. Raises DataError as R2Gen does."""
        kind = require_split(self.name, split, split_rule)
        table = find_table(path, ("indiana_reports.csv", "iu_reports.csv", "reports.csv", "reports.jsonl"))
        listed = _projections(table)
        placing = OneSplit()

        def rows() -> Iterator[tuple[str, Row]]:
            column: bool | None = None
            for where, row in _table_rows(table):
                has_column = any(field in row for field in _PATIENTS)
                column = has_column if column is None else column
                if has_column and not column:
                    raise DataError(
                        f"{where} has a patient, and the rows before have no such column",
                        "give every row the column: without it each study counts as a patient of its own",
                    )
                patient = _subject(row, where) if column else _patient(row, where)
                own = self._split(row, where, split_rule, patient)
                kept = placing.holds(patient or where, own)
                if own == kind:
                    yield where, row | {"_patient": patient, "_elsewhere": not kept}

        images = _images(table.parent)
        return counted(rows(), lambda row, where: self._examples(row, where, listed, images, kind), tally)

    def _split(self, row: Row, where: str, rule: str, patient: str) -> str:
        own = optional(row, "split", where).lower() if rule == "official" else ""
        if own and own not in SPLITS:
            raise DataError(f"{where}: split is another word, expected one of {', '.join(SPLITS)}, or nothing")
        return own or hashed_split(OWN, patient or where)

    def _examples(
        self, row: Row, where: str, listed: Mapping[str, list[str]] | None, images: Images, split: Split
    ) -> list[Example]:
        if not row["_patient"]:
            raise Unusable(NOBODY)
        if row["_elsewhere"]:
            raise Unusable(TWO_SPLITS)
        sections = {name: _section(row, name, where) for name in ("findings", "impression")}
        if not {*sections} & {*row}:
            raise DataError(f"{where}: findings and impression are missing, expected one of them")
        found = {name: said for name, said in sections.items() if said}
        names = _names(row, where) if listed is None else listed.get(_first(row, _UIDS, where), [])
        return [_study(self.name, row, where, found, names, images, split)]


def _study(
    source: str, row: Row, where: str, sections: Mapping[str, str], names: list[str], images: Images, split: Split
) -> Example:
    """One example; Unusable where no report or no image is left."""
    found = {name: said for name, said in sections.items() if said}
    if not found:
        raise Unusable("report is empty")
    if not names:
        raise Unusable("study has no image")
    report = "\n".join(f"{name.capitalize()}: {said}" for name, said in found.items()) if len(sections) > 1 else ""
    answer = report or next(iter(found.values()))
    indication = _section(row, "indication", where)
    asked = INSTRUCTIONS[tuple(found)]
    attributes = {"images": str(len(names)), "deidentified": "yes" if _DEIDENTIFIED.search(answer) else "no"}
    if problems := optional(row, "problems", where):
        attributes["finding"] = "normal" if problems.lower() == "normal" else "abnormal"
    return Example(
        patient=_patient(row, where),
        images=tuple(images.load(name) for name in names),
        question=f"Indication: {indication}\n{asked}" if indication else asked,
        answer=answer,
        answer_type="open",
        task="report",
        source=source,
        split=split,
        attributes=attributes,
    )


def _section(row: Row, field: str, where: str, *, required: bool = False) -> str:
    """A text with each run of what de-identification left as one; empty where there is nothing else."""
    said = clean(row, field, where) if required else optional(row, field, where, (str, float))
    said = _DEIDENTIFIED.sub(lambda run: _LEFT if run[0].startswith("X") else "___", said)
    return said if re.search(r"\w", _DEIDENTIFIED.sub("", said)) and said.lower() != "nan" else ""


def _patient(row: Row, where: str) -> str:
    """The subject, or the study where nobody says whose it is."""
    if subject := _subject(row, where):
        return subject
    for name in _names(row, where):
        if found := _IN_PATH.search(name):
            return found[1].removeprefix("p")
    study = _first(row, _UIDS, where)
    report = _IU.match(study)
    return report[0] if report else study


def _subject(row: Row, where: str) -> str:
    """Of the first column of patients alone: what another says of a row without may be a second name for one person."""
    column = tuple(field for field in _PATIENTS if field in row)[:1]
    return patient_id(_first(row, column, where, required=False))


def _first(row: Row, fields: tuple[str, ...], where: str, *, required: bool = True) -> str:
    """The first of several fields that is there and not empty."""
    for field in fields:
        if found := optional(row, field, where, (str, int, float)):
            return found
    if required:
        raise DataError(f"{where}: {fields[0]} is missing or empty, expected a text or a number")
    return ""


def _names(row: Row, where: str) -> list[str]:
    """The images that the row itself names."""
    for field in _FILES:
        if row.get(field) is not None:
            return [name.strip() for one in texts(row, field, where) for name in one.split(";") if name.strip()]
    return []


def _table_rows(table: Path) -> Iterator[tuple[str, Row]]:
    """The rows with their columns as names are compared; the first of two that are the same."""
    for where, row in table_rows(table):
        yield where, {folded(name): row[name] for name in reversed(row)}


def _projections(table: Path) -> dict[str, list[str]] | None:
    """uid -> its files, frontal ones first, of the table's second; None where there is none."""
    second = table.with_name(table.name.replace("reports", "projections"))
    if second == table or not second.exists():
        return None
    found: dict[str, list[tuple[int, str]]] = {}
    for where, row in _table_rows(second):
        name = clean(row, "filename", where)
        side = optional(row, "projection", where).lower()
        found.setdefault(_first(row, _UIDS, where), []).append((("frontal", "lateral", side).index(side), name))
    return {uid: [name for _, name in sorted(files, key=lambda file: file[0])] for uid, files in found.items()}


def _images(folder: Path) -> Images:
    normalised = folder / "images" / "images_normalized"
    return Images(folder / "images", normalised, folder, folder / "files", folder / "images" / "files")


IU_XRAY = R2Gen("iu_xray", "IU X-Ray as R2Gen splits it: chest studies of two images with their findings", "iu_xray")
MIMIC_CXR = R2Gen("mimic_cxr", "MIMIC-CXR as R2Gen splits it: chest images with their findings", "mimic_cxr")
REPORTS: tuple[Importer, ...] = (IU_XRAY, MIMIC_CXR, FindingsImpression())
