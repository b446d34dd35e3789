"""Cases of more than one modality, JSON Lines (or a JSON list): one case a row, laid out by `fedmed.data.case`.

    {"patient": "17", "question": "Has the mass grown?", "answer": "yes", "indication": "follow-up",
     "images": [{"path": "17/now.png", "role": "current", "modality": "CT", "view": "axial"},
                {"path": "17/then.png", "role": "prior", "days_before": 90, "modality": "CT"}],
     "reports": [{"text": "A mass of 2 cm.", "days_before": 90}],
     "laboratory": [{"test": "CRP", "value": 12, "unit": "mg/L", "reference": "0-5"}],
     "genomics": [{"gene": "EGFR", "variant": "L858R", "significance": "pathogenic"}]}

(wrapped here; a line in the file)

| key                                          | value                                                                      |
| -------------------------------------------- | -------------------------------------------------------------------------- |
| patient, question, answer                    | required                                                                   |
| images, reports, laboratory, genomics        | lists of objects as above; missing, null and `[]` are the same             |
| role                                         | current (also where missing) or prior                                      |
| days_before                                  | a whole number from 0 on, of images, reports and laboratory; may be missing |
| indication                                   | a text; may be missing                                                     |
| answer_type, choices, split, task            | as in `fedmed.data.importers.tables`                                       |
| every other key                              | an attribute: a text, a number, true or false                              |

Images lie beside the file or in images/. Attributes that are added: `modalities` (of the images, sorted, joined by
commas, and report, laboratory, genomics where there are any) and `images`, their number. Splits as in `tables`; so is what
is quarantined. A list that is none, or an object in it that lacks a key, is a DataError with the row and the place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from fedmed.data.case import ROLES, Case, CaseImage, Genomic, Laboratory, PriorReport, Role, lay_out, ordered_images
from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.columns import given
from fedmed.data.importers.rows import text, wrong_field
from fedmed.data.importers.rowwise import (
    TWO_SPLITS,
    Images,
    OneSplit,
    Row,
    Unusable,
    answer_type_of,
    clean,
    counted,
    find_table,
    listed,
    optional,
    patient_of,
    require_texts,
    table_rows,
    whole,
)
from fedmed.data.importers.tables import Seen, choices_of, chosen, said, split_of, task_of, who
from fedmed.data.schema import Example, Split
from fedmed.errors import DataError

_REQUIRED = ("patient", "question", "answer")
_KEYS = ("patient", "question", "answer", "images", "reports", "laboratory", "genomics", "indication", "answer_type")
_OWN = {*_KEYS, "choices", "split", "task"}


class Cases(Importer):
    """Importer of a file of cases."""

    name = "cases"
    description = "cases of several images, prior reports, laboratory values and genomic findings (JSON Lines)"
    filename = "cases.jsonl"

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The cases of a split. Raises DataError as the module says."""
        kind = require_split(self.name, split, split_rule)
        table = find_table(path, (self.filename, "cases.json"))
        placing, seen = OneSplit(), Seen()

        def rows() -> Iterator[tuple[str, Row]]:
            for where, raw in table_rows(table):
                row = {name: given(value) if name in _REQUIRED else value for name, value in raw.items()}
                own = split_of(row, where, split_rule)
                kept = placing.holds(who(row, where), own)
                if own == kind:
                    yield where, {**row, "_elsewhere": not kept}

        images = Images(table.parent / "images", table.parent)
        return counted(rows(), lambda row, where: [self._example(row, where, images, seen, kind)], tally)

    def _example(self, row: Row, where: str, images: Images, seen: Seen, split: Split) -> Example:
        elsewhere = row.pop("_elsewhere")
        patient = patient_of(row, "patient", where)
        if elsewhere:
            raise Unusable(TWO_SPLITS)
        choices = choices_of(row, where)
        case = case_of(row, where, choices)
        answer = chosen(clean(row, "answer", where, (str, int, float)), choices)
        require_texts(answer)
        kind = answer_type_of(optional(row, "answer_type", where), answer, choices)
        example = Example(
            patient=patient,
            images=tuple(images.load(image.name) for image in ordered_images(case)),
            question=lay_out(case),
            answer=said(answer, kind, choices),
            answer_type=kind,
            task=task_of(row, where, choices),
            source=self.name,
            split=split,
            attributes=_attributes(row, where) | {"modalities": _modalities(case), "images": str(len(case.images))},
            choices=choices,
        )
        seen.require_new(example)
        return example


def case_of(row: Row, where: str, choices: Sequence[str] = ()) -> Case:
    """A row as a case, every key checked. Raises DataError with the place, Unusable where a text is empty."""
    return Case(
        question=listed(_required(row, "question", where), choices),
        images=tuple(_image(*found) for found in _listed(row, "images", where)),
        indication=optional(row, "indication", where),
        reports=tuple(
            PriorReport(_required(item, "text", here), _days(item, here))
            for item, here in _listed(row, "reports", where)
        ),
        laboratory=tuple(_laboratory(*found) for found in _listed(row, "laboratory", where)),
        genomics=tuple(
            Genomic(
                _required(item, "gene", here), _required(item, "variant", here), optional(item, "significance", here)
            )
            for item, here in _listed(row, "genomics", where)
        ),
    )


def _listed(row: Row, field: str, where: str) -> Iterator[tuple[Row, str]]:
    """The objects of a list, each with its place; none where the key is missing or null."""
    value = row.get(field)
    if value is not None and not isinstance(value, list):
        raise wrong_field(row, field, where, "a list of objects")
    for place, item in enumerate(value or ()):
        here = f"{where} {field}[{place}]"
        if not isinstance(item, dict):
            raise DataError(f"{here} is {type(item).__name__}, expected an object")
        yield item, here


def _image(item: Row, here: str) -> CaseImage:
    role = optional(item, "role", here).lower() or "current"
    if role not in ROLES:
        raise DataError(f"{here}: role is another word, expected {' or '.join(ROLES)}")
    return CaseImage(
        name=_required(item, "path", here),
        role=cast(Role, role),
        days_before=_days(item, here),
        modality=optional(item, "modality", here),
        view=optional(item, "view", here),
    )


def _laboratory(item: Row, here: str) -> Laboratory:
    return Laboratory(
        test=_required(item, "test", here),
        value=_required(item, "value", here, (str, int, float)),
        unit=optional(item, "unit", here),
        reference=optional(item, "reference", here, (str, int, float)),
        days_before=_days(item, here),
    )


def _required(item: Row, field: str, here: str, kinds: tuple[type, ...] = (str,)) -> str:
    """A text that must not be empty: half a finding would be learnt as a whole one."""
    found = clean({field: given(item[field])} if field in item else {}, field, here, kinds)
    if not found:
        raise Unusable(f"{field} is empty")
    return found


def _days(item: Row, here: str) -> int | None:
    value = item.get("days_before")
    if isinstance(value, float) and value.is_integer():  # as pandas writes whole numbers beside missing ones
        value = int(value)
    if value is None or (type(value) is int and value >= 0):
        return value
    raise wrong_field(item, "days_before", here, "a whole number from 0 on")


def _attributes(row: Row, where: str) -> dict[str, str]:
    others = (name for name, value in row.items() if name not in _OWN and given(value) != "" and name.strip())
    return {whole(name): whole(text(row, name, where, (str, int, float, bool))) for name in others}


def _modalities(case: Case) -> str:
    found = {image.modality or "image" for image in case.images}
    kinds = {"report": case.reports, "laboratory": case.laboratory, "genomics": case.genomics}
    return ",".join(sorted(found | {kind for kind, listed in kinds.items() if listed}))
