"""Reports in R2Gen's layout and as a table of findings and impression, made here with the real files' dirt."""

from __future__ import annotations

import csv
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

from fedmed.data.importers.reports import INSTRUCTIONS, IU_XRAY, MIMIC_CXR, FindingsImpression
from fedmed.data.importers.rowwise import NOBODY, TWO_SPLITS
from fedmed.errors import DataError

LEFT = "X" * 4  # what Open-i's de-identification puts in a word's place
FINDINGS, IMPRESSION, BOTH = INSTRUCTIONS.values()
TABLE = FindingsImpression()
COLUMNS = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")


def study(number: int, **changes: Any) -> dict[str, Any]:
    name = f"CXR{number}_IM-0{number}"
    paths = [f"{name}/0.png", f"{name}/1.png"]
    fields = {"id": name, "report": "The lungs are clear.", "image_path": paths, "split": "train"} | changes
    return {key: value for key, value in fields.items() if value != "left out"}


def annotated(folder: Path, train: list[Any], val: list[Any] | None = None, test: list[Any] | None = None) -> Path:
    listed = [row for row in (*train, *(val or ()), *(test or ())) if isinstance(row, dict)]
    save_images(
        folder / "images", *(name for row in listed for name in row.get("image_path", ()) if "gone" not in name)
    )
    save_json(folder / "annotation.json", {"train": train, "val": val or [], "test": test or []})
    return folder


def test_a_study_of_two_images_is_one_example(tmp_path: Path) -> None:
    (item,) = read_all(IU_XRAY, annotated(tmp_path, [study(2384)]))
    assert (item.patient, item.task, item.answer_type, len(item.images)) == ("CXR2384", "report", "open", 2)
    assert (item.question, item.answer) == (FINDINGS, "The lungs are clear.")
    assert dict(item.attributes) == {"images": "2", "deidentified": "no"}
    assert item.images[0] != item.images[1]


def test_the_files_of_mimic_cxr(tmp_path: Path) -> None:
    """Subjects as numbers; paths with the subject in them, under files/ or not; underscores for names."""
    path = "p10/p10000032/s50414267/02aa804e.jpg"
    rows = [
        {"id": "02aa804e", "study_id": 50414267, "subject_id": 10000032, "report": "No change since ___ ___, ___.",
         "image_path": [path], "split": "train"},
        {"id": "02aa804f", "study_id": 50414268, "report": "Clear.", "image_path": [f"files/{path}"], "split": "train"},
    ]  # fmt: skip
    save_images(tmp_path / "files", path)
    save_json(tmp_path / "annotation.json", {"train": rows, "val": [], "test": []})
    first, second = read_all(MIMIC_CXR, tmp_path)
    assert first.patient == second.patient == "10000032"
    assert (first.answer, first.attributes["deidentified"]) == ("No change since ___.", "yes")


def test_the_dirt_of_annotation_files(tmp_path: Path) -> None:
    rows = [
        study(1, report=f"The {LEFT} {LEFT}, {LEFT} aortic\n {LEFT}/{LEFT} is normal.  <image>"),
        study(2, report=f"{LEFT} {LEFT}. "),
        study(3, report=" "),
        study(4, image_path=["CXR4_IM-04/0.png", "gone.png"]),
        study(5, image_path=[]),
        study(6, split="test"),
        study(7, split="left out", image_path="CXR7_IM-07/0.png"),
        study(8, report="nan"),
        study(9, id="CXR9"),
    ]
    save_images(tmp_path / "images", "CXR7_IM-07/0.png")
    rows[6]["image_path"] = ["CXR7_IM-07/0.png"]
    path = annotated(tmp_path, rows)
    assert [(item.patient, item.answer) for item in read_all(IU_XRAY, path)] == [
        ("CXR1", f"The {LEFT} aortic {LEFT} is normal."),
        ("CXR7", "The lungs are clear."),
        ("CXR9", "The lungs are clear."),
    ]
    assert quarantined(IU_XRAY, path) == {
        "report is empty": 3,
        "image is missing": 1,
        "study has no image": 1,
        "split differs from the list it stands in": 1,
    }


def test_splits_are_the_files_own_or_by_patient(tmp_path: Path) -> None:
    path = annotated(
        tmp_path,
        [study(number) for number in range(1, 40)],
        [study(50, split="val")],
        [study(1, split="test"), study(51, split="test")],
    )
    official = {split: IU_XRAY.read(path, split=split) for split in ("train", "val", "test")}
    assert [part.rows_read for part in official.values()] == [39, 1, 2]
    apart = [IU_XRAY.read(path, split=split, split_rule="image") for split in official]
    patients = [{item.patient for item in part.examples} for part in apart]
    assert sum(part.rows_read for part in apart) == 42 and sum(map(len, patients)) == 41 and all(patients)


@pytest.mark.parametrize(
    ("written", "patient"),
    [("12.0", "12"), (12.0, "12"), ("W.0", "W.0"), (" .0", ".0"), ("n/a", "CXR1"), ("nan", "CXR1"), (None, "CXR1")],
)
def test_a_subject_is_whom_it_names_or_nobody(tmp_path: Path, written: Any, patient: str) -> None:
    (item,) = read_all(IU_XRAY, annotated(tmp_path, [study(1, subject_id=written)]))
    assert item.patient == patient


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"report": None}, "annotation.json train row 1: report is NoneType, expected str"),
        ({"report": "left out"}, "annotation.json train row 1: report is missing, expected str"),
        ({"image_path": 3}, "train row 1: image_path is int, expected a list of texts"),
        ({"id": "left out"}, "train row 1: uid is missing or empty, expected a text or a number"),
        ({"subject_id": ["x"]}, "train row 1: subject_id is list, expected str or int or float"),
    ],
)
def test_row_and_field_of_another_kind_are_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    annotated(tmp_path, [])
    save_images(tmp_path / "images", *study(1)["image_path"])
    save_json(tmp_path / "annotation.json", {"train": [study(1, **changes)], "val": [], "test": []})
    with pytest.raises(DataError, match=expected):
        read_all(IU_XRAY, tmp_path)


def test_an_annotation_file_without_a_list_is_refused(tmp_path: Path) -> None:
    save_json(tmp_path / "annotation.json", {"train": []})
    with pytest.raises(DataError, match="holds a JSON NoneType under 'val', expected"):
        read_all(IU_XRAY, tmp_path)


def open_i_row(uid: int, **changes: str) -> dict[str, str]:
    fields = dict.fromkeys(COLUMNS, "") | {"uid": str(uid), "Problems": "normal", "image": "PA and lateral"}
    return fields | {"findings": "The lungs are clear.", "impression": "Normal chest."} | changes


def save_csv(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def open_i(folder: Path, rows: list[dict[str, str]]) -> Path:
    """The two tables of Kaggle's copy of Open-i, with the lateral image first for every second study."""
    listed = []
    for row in rows:
        sides = ("Frontal", "Lateral") if int(row["uid"]) % 2 else ("Lateral", "Frontal")
        listed += [{"uid": row["uid"], "filename": f"{row['uid']}_{side}.png", "projection": side} for side in sides]
    save_images(folder / "images" / "images_normalized", *(item["filename"] for item in listed))
    save_csv(folder / "indiana_projections.csv", listed, ("uid", "filename", "projection"))
    save_csv(folder / "indiana_reports.csv", rows)
    return folder


def test_findings_impression_and_indication(tmp_path: Path) -> None:
    rows = [
        open_i_row(1, indication="Chest  pain."),
        open_i_row(2, findings="", Problems="Cardiomegaly;Aorta", indication=LEFT),
        open_i_row(3, impression="nan"),
    ]
    first, second, third = sorted(read_all(TABLE, open_i(tmp_path, rows)), key=lambda item: item.patient)
    assert first.question == f"Indication: Chest pain.\n{BOTH}"
    assert first.answer == "Findings: The lungs are clear.\nImpression: Normal chest."
    assert (second.question, second.answer) == (IMPRESSION, "Normal chest.")
    assert (third.question, third.answer) == (FINDINGS, "The lungs are clear.")
    assert [item.attributes["finding"] for item in (first, second, third)] == ["normal", "abnormal", "normal"]
    frontal = (tmp_path / "images" / "images_normalized" / "2_Frontal.png").read_bytes()
    assert second.images[0].data == frontal


def test_the_dirt_of_open_i(tmp_path: Path) -> None:
    rows = [open_i_row(1, findings="", impression=""), open_i_row(2), open_i_row(3, findings=LEFT, impression="nan")]
    path = open_i(tmp_path, rows)
    save_csv(path / "indiana_reports.csv", [*rows, open_i_row(9)])
    (path / "images" / "images_normalized" / "2_Lateral.png").unlink()
    assert read_all(TABLE, path) == []
    assert quarantined(TABLE, path) == {"report is empty": 2, "image is missing": 1, "study has no image": 1}


def test_one_table_may_name_images_patients_and_splits(tmp_path: Path) -> None:
    save_images(tmp_path, "a.png", "b.png")
    rows = [
        {"uid": 1, "subject_id": 7.0, "findings": "Clear.", "filenames": ["a.png", "b.png"], "split": "test"},
        {"uid": 2, "subject_id": 7, "impression": "Clear.", "filenames": "a.png; b.png", "split": "Test"},
    ]
    path = save_lines(tmp_path / "reports.jsonl", rows)
    found = TABLE.read(path, split="test")
    assert [(item.patient, len(item.images)) for item in found.examples] == [("7", 2)] * 2
    assert found.rows_read == 2
    save_lines(path, [rows[0] | {"split": "train"}, *rows])
    assert quarantined(TABLE, path) == {TWO_SPLITS: 2}
    save_lines(path, [rows[0] | {"subject_id": written} for written in (None, "nan", 1e22)])
    assert quarantined(TABLE, path) == {NOBODY: 3}
    save_lines(path, [{"patient": "", **rows[0]}])  # of columns of patients the first counts, as in `table`
    assert quarantined(TABLE, path) == {NOBODY: 1}
    nobodys = {"uid": 3, "findings": "Clear.", "filenames": "a.png"}  # JSON Lines may leave a missing value out
    save_lines(path, [rows[0], nobodys])
    assert quarantined(TABLE, path) == {NOBODY: 1}
    save_lines(path, [nobodys, rows[0]])
    with pytest.raises(DataError, match="row 2 has a patient, and the rows before have no such column"):
        read_all(TABLE, path)
    save_lines(path, [rows[0] | {"split": "holdout"}])
    with pytest.raises(DataError, match="row 1: split is another word, expected one of train, val, test"):
        read_all(TABLE, path)
    save_lines(path, [{"uid": 1, "filenames": "a.png"}])
    with pytest.raises(DataError, match="row 1: findings and impression are missing"):
        read_all(TABLE, path)


def test_columns_are_found_in_any_case(tmp_path: Path) -> None:
    """A column that is not seen would make each study of a person a patient of its own."""
    save_images(tmp_path, "a.png")
    lines = ["UID,Patient ID,Findings ,Impression,FileNames", "1,P1,Clear.,Normal.,a.png", "2,P1,Better.,,a.png"]
    (tmp_path / "reports.csv").write_text("\n".join(lines))
    first, second = read_all(TABLE, tmp_path)
    assert first.patient == second.patient == "P1"
    assert (first.answer, second.answer) == ("Findings: Clear.\nImpression: Normal.", "Better.")


def test_any_damage_is_told_or_quarantined(tmp_path: Path) -> None:
    content = {"train": [study(number) for number in range(1, 4)], "val": [study(4, split="val")], "test": []}
    path = annotated(tmp_path, content["train"], content["val"])
    for rule in ("official", "image"):
        require_survives_damage(
            IU_XRAY, content, lambda damaged: save_json(path / "annotation.json", damaged), rule=rule
        )
    annotated(tmp_path, content["train"], content["val"])
    require_survives_bytes(IU_XRAY, path, path / "annotation.json")


def test_any_damage_of_tables_is_told_or_quarantined(tmp_path: Path) -> None:
    rows = [open_i_row(number, indication="Pain.") for number in range(1, 6)]
    path = open_i(tmp_path / "csv", rows)
    require_survives_bytes(TABLE, path, path / "indiana_reports.csv")
    require_survives_bytes(TABLE, path, path / "indiana_projections.csv")
    save_images(tmp_path, "a.png")
    lines = [
        {"uid": number, "findings": "Clear.", "filenames": ["a.png"], "indication": "Pain."} for number in range(4)
    ]
    require_survives_damage(TABLE, lines, lambda damaged: save_lines(tmp_path / "reports.jsonl", damaged))
