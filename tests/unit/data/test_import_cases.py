"""Cases as JSON Lines, made here: every part, what is missing, and what is of another kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers_importers import (
    case_row,
    quarantined,
    read_all,
    require_survives_bytes,
    require_survives_damage,
    save_images,
    save_json,
    save_lines,
)

from fedmed.data.importers.cases import Cases
from fedmed.data.importers.rowwise import NOBODY, TWO_SPLITS
from fedmed.errors import DataError

ENTRY = Cases()


def cases(folder: Path, *rows: Any) -> Path:
    save_images(folder / "images", "now.png", "then.png")
    return save_lines(folder / "cases.jsonl", list(rows))


def test_a_case_is_one_example_with_its_images_at_their_marks(tmp_path: Path) -> None:
    (item,) = read_all(ENTRY, cases(tmp_path, case_row()))
    assert item.question.split("\n") == [
        "Question: Has it grown?",
        "Current CT axial: <image>",
        "Prior CT, 90 days before: <image>",
        "Indication: follow-up",
        "Prior report, 90 days before: A mass of 2 cm.",
        "Laboratory: CRP 12 mg/L (reference 0-5)",
        "Genomic finding: EGFR L858R (pathogenic)",
    ]
    assert [ref.data for ref in item.images] == [
        (tmp_path / "images" / name).read_bytes() for name in ("now.png", "then.png")
    ]
    assert (item.patient, item.answer, item.answer_type, item.task) == ("17", "yes", "closed", "vqa")
    assert dict(item.attributes) == {"ward": "3", "modalities": "CT,genomics,laboratory,report", "images": "2"}


def test_every_part_may_be_missing(tmp_path: Path) -> None:
    parts = ("images", "reports", "laboratory", "genomics", "indication", "ward")
    rows = [case_row(**dict.fromkeys(parts, absent)) for absent in ("left out", None)]
    rows.append(case_row(**{**{part: [] for part in parts}, "indication": "", "ward": ""}))
    for item in read_all(ENTRY, save_json(tmp_path / "cases.json", rows)):
        assert (item.question, item.images, item.attributes["modalities"]) == ("Question: Has it grown?", (), "")


def test_a_text_of_a_case_moves_no_image(tmp_path: Path) -> None:
    marked = [{"text": "See <image> and <ima<image>ge>.", "days_before": 90}]
    (item,) = read_all(ENTRY, cases(tmp_path, case_row(reports=marked, question="Is <image> it?")))
    assert item.question.count("<image>") == 2 and "Prior report, 90 days before: See and <ima ge>." in item.question


def test_whole_numbers_may_be_written_as_pandas_does(tmp_path: Path) -> None:
    (item,) = read_all(
        ENTRY, cases(tmp_path, case_row(patient=17.0, reports=[{"text": "Clear.", "days_before": 90.0}]))
    )
    assert item.patient == "17" and "Prior report, 90 days before: Clear." in item.question
    with pytest.raises(DataError, match=r"reports\[0\]: days_before is float, expected a whole number from 0 on"):
        read_all(ENTRY, cases(tmp_path, case_row(reports=[{"text": "Clear.", "days_before": 1.5}])))


def test_choices_are_listed_and_a_letter_names_one(tmp_path: Path) -> None:
    (item,) = read_all(ENTRY, cases(tmp_path, case_row(choices=["grown", "smaller"], answer="b")))
    assert (item.answer, item.choices, item.task) == ("smaller", ("grown", "smaller"), "choice")
    assert item.question.startswith("Question: Has it grown? Choices: A: grown B: smaller\n")


def test_what_cannot_be_used_is_quarantined(tmp_path: Path) -> None:
    path = cases(
        tmp_path,
        case_row(),
        case_row(),
        case_row(patient="None"),
        case_row(patient=None),
        case_row(answer=None),
        case_row(images=[{"path": "gone.png"}]),
        case_row(answer=" "),
        case_row(question=""),
        case_row(reports=[{"text": ""}]),
        case_row(split="test"),
        case_row(laboratory=[{"test": "CRP", "value": float("nan")}]),
        case_row(laboratory=[{"test": "CRP", "value": None}]),
    )
    assert len(read_all(ENTRY, path)) == 1
    assert quarantined(ENTRY, path) == {
        "repeats another row": 1,
        NOBODY: 2,
        "image is missing": 1,
        "question or answer is empty": 2,
        "question is empty": 1,
        "text is empty": 1,
        TWO_SPLITS: 1,
        "value is empty": 2,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"patient": "left out"}, r"cases\.jsonl row 2: patient is missing, expected str or int or float"),
        ({"images": {"path": "x"}}, "row 2: images is dict, expected a list of objects"),
        ({"images": ["now.png"]}, r"row 2 images\[0\] is str, expected an object"),
        ({"images": [{"role": "prior"}]}, r"row 2 images\[0\]: path is missing, expected str"),
        (
            {"images": [{"path": "now.png", "role": "old"}]},
            r"images\[0\]: role is another word, expected current or prior",
        ),
        (
            {"images": [{"path": "now.png", "days_before": -1}]},
            r"images\[0\]: days_before is int, expected a whole number",
        ),
        ({"reports": [{"text": "x"}, {"text": 3}]}, r"row 2 reports\[1\]: text is int, expected str"),
        ({"laboratory": [{"test": "CRP"}]}, r"laboratory\[0\]: value is missing, expected str or int or float"),
        ({"genomics": [{"gene": "EGFR"}]}, r"genomics\[0\]: variant is missing, expected str"),
        ({"indication": 3}, "row 2: indication is int, expected str"),
        ({"ward": [3]}, "row 2: ward is list, expected str or int or float or bool"),
        ({"split": "holdout"}, "row 2: split is another word"),
    ],
)
def test_row_and_place_of_another_kind_are_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_all(ENTRY, cases(tmp_path, case_row(), case_row(**changes)))


def test_any_damage_is_told_or_quarantined(tmp_path: Path) -> None:
    rows = [case_row(patient=number) for number in range(3)]
    require_survives_damage(ENTRY, rows, lambda content: cases(tmp_path, *content), times=300)
    require_survives_bytes(ENTRY, cases(tmp_path, *rows), tmp_path / "cases.jsonl", times=60)
