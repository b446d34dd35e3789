"""A hospital's own tables: CSV, JSON Lines, and a folder of images with their labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from helpers_importers import (
    quarantined,
    read_all,
    require_survives_bytes,
    require_survives_damage,
    save_images,
    save_json,
    save_lines,
)

from fedmed.data.importers.cases import Cases
from fedmed.data.importers.folder_images import OUTSIDE
from fedmed.data.importers.reports import FindingsImpression
from fedmed.data.importers.rowwise import NOBODY, TWO_SPLITS
from fedmed.data.importers.tables import IMAGE_FOLDER, TABLE
from fedmed.errors import DataError

HEADER = "patient,image,question,answer,split,organ"


def table(folder: Path, lines: Iterable[str], header: str = HEADER, name: str = "table.csv", sign: str = "\n") -> Path:
    save_images(folder, "a.png", "ct/b.png")
    (folder / name).write_bytes(sign.join([header, *lines, ""]).encode())
    return folder / name


def row(**changes: Any) -> dict[str, Any]:
    fields = {"patient": "p1", "image": "a.png", "question": "Is it?", "answer": "no", "split": "train"} | changes
    return {key: value for key, value in fields.items() if value != "left out"}


def lines(folder: Path, *rows: Any) -> Path:
    save_images(folder, "a.png", "ct/b.png")
    return save_lines(folder / "table.jsonl", list(rows))


def test_a_row_is_a_question(tmp_path: Path) -> None:
    path = table(
        tmp_path, ["17,a.png,Is  there a mass?,No,train,liver", '17,a.png;ct/b.png,"Where, and which?",left,,']
    )
    first, second = read_all(TABLE, path)
    assert (first.patient, first.question, first.answer, first.answer_type) == (
        "17",
        "Is there a mass?",
        "no",
        "closed",
    )
    assert (first.task, first.split, dict(first.attributes)) == ("vqa", "train", {"organ": "liver"})
    assert (second.question, second.answer_type, len(second.images)) == ("Where, and which?", "open", 2)


@pytest.mark.parametrize(
    ("header", "line", "sign"),
    [
        (
            "\ufeffpatient;image;question;answer",
            "17;a.png;Is it, now?;no",
            "\r\n",
        ),  # a spreadsheet's, in half of Europe
        ("Patient ID\tFile \tQUESTION\tLabel", "17\tct\\b.png\tIs it, now?\tno", "\r\n"),
        ("subject_id,images,question,answer", '17,a.png,"Is it, now?",no', "\n"),
    ],
)
def test_spreadsheets_write_tables_in_their_own_way(tmp_path: Path, header: str, line: str, sign: str) -> None:
    (item,) = read_all(TABLE, table(tmp_path, [line], header, sign=sign))
    assert (item.patient, item.question, item.answer, len(item.images)) == ("17", "Is it, now?", "no", 1)
    assert not item.attributes


def test_a_column_of_the_standard_name_counts_before_others_that_may_stand_for_it(tmp_path: Path) -> None:
    """A radiologist's label beside the answer, a visit's id beside the patient's, in any order."""
    header = "file,label,subject_id,patient_id,patient,image,question,answer"
    (item,) = read_all(TABLE, table(tmp_path, ["gone.png,pneumonia,visit,old,P1,a.png,Is it?,yes"], header))
    assert (item.patient, item.answer, len(item.images)) == ("P1", "yes", 1)
    assert item.attributes["label"] == "pneumonia" and item.attributes["subject_id"] == "visit"
    (item,) = read_all(TABLE, table(tmp_path, ["visit,P1,Is it?,yes"], "subject_id,Patient ID,question,answer"))
    assert item.patient == "P1"


def test_cells_hold_lists_as_lines_do(tmp_path: Path) -> None:
    row = '17,"[""a.png"", ""ct/b.png""]",Is it?,B,"[""x"", ""[y""]"'
    (item,) = read_all(
        TABLE, table(tmp_path, [row, "18,a.png,Is it?,A,[z|y"], "patient,image,question,answer,choices")
    )[:1]
    assert (len(item.images), item.choices, item.answer) == (2, ("x", "[y"), "[y")


def test_empty_columns_behind_the_last_are_not_there(tmp_path: Path) -> None:
    header = "patient,image,question,answer,,"
    path = table(tmp_path, ["17,a.png,Is it?,no,,", "18,a.png,Is it?,no", "19,a.png,Is it?,no,,,"], header)
    assert [item.patient for item in read_all(TABLE, path)] == ["17", "18", "19"]
    with pytest.raises(DataError, match="row 1 has 5 cells, expected 4"):
        read_all(TABLE, table(tmp_path, ["17,a.png,Is it, now?,no"], header))


def test_lines_hold_choices_marks_and_attributes(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        row(choices=["liver", "lung"], answer="B"),
        row(choices="liver|lung", answer="liver", task="choice", question="Which?"),
        row(image=["a.png", "ct/b.png"], question="Was <image> is <image>?", answer_type="OPEN", answer=3),
        row(image="left out", question="Of <image> none?", age=61, smoker=True, note=None, site=""),
    )
    first, second, third, fourth = read_all(TABLE, path)
    assert (first.answer, first.choices, first.task, first.answer_type) == (
        "lung",
        ("liver", "lung"),
        "choice",
        "closed",
    )
    assert first.question == "Is it? Choices: A: liver B: lung"
    assert second.answer == "liver"
    assert (third.question, third.answer, third.answer_type) == ("Was <image> is <image>?", "3", "open")
    assert (fourth.question, fourth.images, dict(fourth.attributes)) == (
        "Of none?",
        (),
        {"age": "61", "smoker": "True"},
    )


def test_the_dirt_of_tables(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        row(),
        row(),
        row(patient="nan"),
        row(patient=" "),
        row(patient=None),
        row(patient="1.23457E+11"),
        row(patient="Unknown"),
        row(patient=1e22),
        row(image="gone.png"),
        row(image="../table.jsonl"),
        row(answer=""),
        row(answer=float("nan")),
        row(answer=None),
        row(answer="NaN"),
        row(question=" "),
        row(question="nan"),
        row(answer="NO."),
        row(choices=["x", "y"]),
        row(choices=["x", "x"], answer="x"),
        row(answer_type="maybe"),
        row(split="test", question="Elsewhere?"),
        row(patient=12345.0, question="As pandas writes it?", split="dev"),
        row(question="long " * 40_000),
    )
    assert [item.patient for item in read_all(TABLE, path)] == ["p1", "12345"]
    assert quarantined(TABLE, path) == {
        "repeats another row": 2,
        NOBODY: 6,
        "image is missing": 1,
        OUTSIDE: 1,
        "question or answer is empty": 6,
        "answer is none of the choices": 1,
        "two choices are the same, one is empty, or there are more than letters": 1,
        "answer type is neither open nor closed": 1,
        TWO_SPLITS: 1,
        "text is too long": 1,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"patient": "left out"}, "table.jsonl row 2 has no column patient"),
        ({"patient": ["p1"]}, "row 2: patient is list, expected str or int or float"),
        ({"question": 7}, "row 2: question is int, expected str"),
        ({"answer": ["no"]}, "row 2: answer is list, expected str or int or float"),
        ({"image": 7}, "row 2: image is int, expected a list of texts"),
        ({"split": "holdout"}, "row 2: split is another word, expected one of train, val, test, validation"),
        ({"task": "guess"}, "row 2: task is another word, expected one of vqa, choice"),
        ({"choices": 3}, "row 2: choices is int, expected a list of texts"),
        ({"age": [61]}, "row 2: age is list, expected str or int or float or bool"),
    ],
)
def test_row_and_field_of_another_kind_are_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_all(TABLE, lines(tmp_path, row(), row(**changes)))


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    path = table(tmp_path, ["17,a.png,nein,9"], "Fall,Bild,Antwort,patient")
    mapping = {"patient": "fall", "image": "Bild", "answer": "Antwort", "question": {"value": "Is there a fracture?"}}
    save_json(tmp_path / "columns.json", mapping)
    (item,) = read_all(TABLE, path)
    assert (item.patient, item.question, item.answer, len(item.images)) == ("17", "Is there a fracture?", "nein", 1)
    assert dict(item.attributes) == {"patient": "9"}


def test_one_split_may_stand_for_all_rows(tmp_path: Path) -> None:
    path = table(tmp_path, (f"p{number},a.png,Is it?,no" for number in range(30)), "patient,image,question,answer")
    save_json(tmp_path / "columns.json", {"split": {"value": "train"}})
    assert TABLE.read(path, split="train").rows_read == 30 and TABLE.read(path, split="test").rows_read == 0


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"patient": "MRN"}, "row 1 lacks 1 of the columns that columns.json names"),
        ({"who": "MRN"}, "columns.json is not a JSON object of some of patient, image"),
        ([1], "columns.json is not a JSON object"),
        ({"question": {"text": "x"}}, "columns.json: question is neither the name of a column nor"),
        ({"question": 3}, "columns.json: question is neither"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path, mapping: Any, expected: str) -> None:
    path = table(tmp_path, ["17,a.png,Is it?,no,train,liver"])
    save_json(tmp_path / "columns.json", mapping)
    with pytest.raises(DataError, match=expected):
        read_all(TABLE, path)


def test_splits_follow_the_patient_where_there_is_no_column(tmp_path: Path) -> None:
    path = table(
        tmp_path, (f"p{number % 50},a.png,q{number}?,no" for number in range(150)), "patient,image,question,answer"
    )
    patients = [{item.patient for item in TABLE.read(path, split=split).examples} for split in ("train", "val", "test")]
    assert sum(map(len, patients)) == 50 and len(patients[0]) > len(patients[2]) > 0 < len(patients[1])
    own = lines(
        tmp_path, *(row(patient=f"p{number % 50}", question=f"q{number}?", split="test") for number in range(150))
    )
    again = [
        {item.patient for item in TABLE.read(own, split=split, split_rule="image").examples}
        for split in ("train", "val", "test")
    ]
    assert again == patients and TABLE.read(own, split="test").rows_read == 150


@pytest.mark.parametrize("line", ['17,a.png,Is it?,"no', '17,a.png,"Is it?,no', '17,a.png,"Is" it?,no'])
def test_a_quote_that_is_not_closed_never_swallows_the_rows_behind_it(tmp_path: Path, line: str) -> None:
    rows = ['16,a.png,"Is\nit?",no', line, "18,a.png,Is it?,no", '19,a.png,"Is it, now?",no']
    path = table(tmp_path, rows, "patient,image,question,answer")
    with pytest.raises(DataError, match=r"table\.csv: the row that begins in line 4 is not CSV") as caught:
        read_all(TABLE, path)
    assert "close every quote" in caught.value.hint


def test_two_spaces_in_the_name_of_a_file_stay_two(tmp_path: Path) -> None:
    save_images(tmp_path, "a  b.png")
    assert len(read_all(TABLE, lines(tmp_path, row(image=" a  b.png")))) == 1


def test_a_patient_is_in_the_same_split_of_every_format_of_a_hospitals_own(tmp_path: Path) -> None:
    """What is imported in parts is combined: nobody must be trained on by one part and held out by another."""
    ids = [f"p{number}" for number in range(40)]
    save_images(tmp_path, "a.png")
    image = {"image": "a.png", "filenames": "a.png"}
    made = {
        TABLE: [row(patient=who, split="left out") for who in ids],
        IMAGE_FOLDER: [image | {"patient": who, "label": "x"} for who in ids],
        Cases(): [{"patient": who, "question": "Is it?", "answer": "no"} for who in ids],
        FindingsImpression(): [image | {"uid": who + "x", "patient": who, "findings": "Clear."} for who in ids],
    }
    found = [
        {item.patient: item.split for item in read_all(entry, save_lines(tmp_path / "rows.jsonl", rows))}
        for entry, rows in made.items()
    ]
    assert len(found[0]) == 40 and all(splits == found[0] for splits in found)


def test_an_accent_is_the_same_however_it_is_encoded(tmp_path: Path) -> None:
    path = lines(tmp_path, row(patient="Jos\u00e9"), row(patient="Jose\u0301", question="And now?"))
    assert len({item.patient for item in read_all(TABLE, path)}) == 1


def test_a_folder_of_images_with_labels(tmp_path: Path) -> None:
    header = "filename,label,patient,scanner"
    table(tmp_path, ["b.png,pneumonia,17,x", ",normal,18,x"], header, name="labels.csv")
    save_images(tmp_path / "images", "b.png")
    (item,) = read_all(IMAGE_FOLDER, tmp_path)
    assert (item.question, item.answer, item.answer_type) == ("What does this image show?", "pneumonia", "closed")
    assert dict(item.attributes) == {"label": "pneumonia", "scanner": "x"}
    assert quarantined(IMAGE_FOLDER, tmp_path) == {"image is not named": 1}
    table(tmp_path, ["b.png,pneumonia,17,yes"], "filename,label,patient,answer", name="labels.csv")
    (item,) = read_all(IMAGE_FOLDER, tmp_path)
    assert (item.answer, dict(item.attributes)) == ("yes", {"label": "pneumonia"})
    table(tmp_path, ["pneumonia,17"], "label,patient", name="labels.csv")
    with pytest.raises(DataError, match=r"labels\.csv row 1 has no column image"):
        read_all(IMAGE_FOLDER, tmp_path)


def test_which_file_of_a_folder_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 0 tables and none named table\.csv"):
        read_all(TABLE, tmp_path)
    table(tmp_path, ["17,a.png,Is it?,no,,"], name="ward 3.CSV")
    assert len(read_all(TABLE, tmp_path)) == 1
    lines(tmp_path / "other")
    (tmp_path / "second.csv").write_text("x")
    with pytest.raises(DataError, match="holds 2 tables"):
        read_all(TABLE, tmp_path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_all(TABLE, tmp_path / "none.csv")


def test_any_damage_is_told_or_quarantined(tmp_path: Path) -> None:
    rows = [row(patient=number, choices=["no", "yes"], organ="liver", task="choice") for number in range(4)]
    require_survives_damage(TABLE, rows, lambda content: lines(tmp_path, *content), times=250)
    require_survives_bytes(TABLE, lines(tmp_path, *rows), tmp_path / "table.jsonl")
    path = table(tmp_path, [f"{number},a.png,Is it?,no,train,liver" for number in range(6)])
    require_survives_bytes(TABLE, path, path)
    labels = table(tmp_path, [f"a.png,x,{number}" for number in range(6)], "filename,label,patient", name="labels.csv")
    require_survives_bytes(IMAGE_FOLDER, labels, labels)
