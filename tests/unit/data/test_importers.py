"""Importers against files made here in the real layout, with the real files' dirt; and against the real files."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmed.data.images import encode_png, open_image
from fedmed.data.importers import IMPORTERS, importer, register
from fedmed.data.importers.folder_images import OUTSIDE
from fedmed.data.importers.medmnist import PNEUMONIA, Label, MedMnist
from fedmed.data.importers.vqa_rad import VqaRad, image_share
from fedmed.errors import DataError

REAL = Path(os.environ.get("FEDMED_DATA_DIR", ""))
needs_real_data = pytest.mark.skipif(
    not os.environ.get("FEDMED_DATA_DIR"), reason="FEDMED_DATA_DIR is not set: the real data sets are absent"
)


def save_npz(path: Path, count: int = 6, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 2
    np.savez_compressed(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return path


def test_medmnist_becomes_closed_questions_of_one_patient_each(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "pneumoniamnist.npz")
    imported = PNEUMONIA.read(path, split="train")
    assert (imported.rows_read, len(imported.examples), imported.quarantined) == (6, 6, {})
    assert [item.answer for item in imported.examples] == ["no", "yes"] * 3
    assert [item.attributes["label"] for item in imported.examples][:2] == ["normal", "pneumonia"]
    assert {(item.task, item.answer_type, item.split) for item in imported.examples} == {("vqa", "closed", "train")}
    others = PNEUMONIA.read(path, split="val").examples + PNEUMONIA.read(path, split="test").examples
    assert len({item.patient for item in (*imported.examples, *others)}) == 18
    with np.load(path) as arrays:
        pixels = np.asarray(open_image(imported.examples[3].images[0], None))
        assert (pixels == arrays["train_images"][3][..., None]).all()


def test_another_medmnist_set_is_one_entry_and_may_have_colours(tmp_path: Path) -> None:
    blood = MedMnist(
        "blood", "cells", "blood.npz", "Which cell is it?", {0: Label("a basophil", "b"), 1: Label("a platelet", "p")}
    )
    colours = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 3), np.uint8)
    imported = blood.read(save_npz(tmp_path / "blood.npz", test_images=colours), split="test")
    assert (np.asarray(open_image(imported.examples[5].images[0], None)) == colours[5]).all()
    assert imported.examples[5].answer == "a platelet"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train_images": None}, "lacks the array train_images"),
        ({"train_images": np.zeros((6, 28, 28))}, "train_images is float64"),
        ({"train_images": np.zeros((6, 28), np.uint8)}, r"train_images is uint8 \[6, 28\], expected"),
        ({"train_images": np.zeros((0, 28, 28), np.uint8)}, "train_images"),
        ({"train_labels": np.zeros((5, 1), np.uint8)}, r"train_labels is uint8 \[5, 1\]"),
        ({"train_labels": np.zeros((6, 14), np.uint8)}, "train_labels"),
        ({"train_labels": np.full((6, 1), 7)}, r"train_labels holds \[7\], expected \[0, 1\]"),
    ],
)
def test_medmnist_arrays_of_another_kind_are_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        PNEUMONIA.read(save_npz(tmp_path / "x.npz", **changes), split="train")


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("unpickled",)


def test_medmnist_never_unpickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labels = np.empty((6, 1), object)
    labels[:] = _Bomb()
    with pytest.raises(DataError, match="not a readable npz file of plain arrays"):
        PNEUMONIA.read(save_npz(tmp_path / "x.npz", train_labels=labels), split="train")
    (tmp_path / "y.npz").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(DataError, match="not a readable npz file of plain arrays"):
        PNEUMONIA.read(tmp_path / "y.npz", split="train")
    assert not (tmp_path / "unpickled").exists()


def test_medmnist_file_missing_cut_off_or_another(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        PNEUMONIA.read(tmp_path / "x.npz", split="train")
    whole = save_npz(tmp_path / "whole.npz").read_bytes()
    for name, content in {"cut": whole[:-200], "damaged": whole[:300] + b"\1" * 99 + whole[399:], "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} "):
            PNEUMONIA.read(tmp_path / name, split="train")
    np.save(tmp_path / "lone.npy", np.zeros(3))
    with pytest.raises(DataError, match="not a readable npz"):
        PNEUMONIA.read(tmp_path / "lone.npy", split="train")


def test_a_split_or_rule_that_is_not_offered_is_named(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "x.npz")
    with pytest.raises(DataError, match="no split 'dev', expected one of train, val, test"):
        PNEUMONIA.read(path, split="dev")
    with pytest.raises(DataError, match="offers no split by 'image'") as caught:
        PNEUMONIA.read(path, split="train", split_rule="image")
    assert "official" in caught.value.hint


def rad_row(image: str = "a.png", **changes: Any) -> dict[str, Any]:
    fields = {
        "qid": 1,
        "image_name": image,
        "image_organ": "HEAD",
        "answer": "Yes",
        "answer_type": "CLOSED ",
        "question_type": "PRSE, ABN",
        "question": "Is  it\tthere? ",
        "phrase_type": "freeform",
    }
    return fields | changes


def rad_folder(folder: Path, train: list[Any], test: list[Any], images: tuple[str, ...] = ("a.png",)) -> Path:
    (folder / "images").mkdir(parents=True)
    for shade, name in enumerate(images):
        (folder / "images" / name).write_bytes(encode_png(np.full((4, 4), shade, np.uint8)))
    (folder / "trainset.json").write_text(json.dumps(train))
    (folder / "testset.json").write_text(json.dumps(test))
    return folder


def test_vqa_rad_survives_the_real_files_dirt(tmp_path: Path) -> None:
    rows = [
        rad_row(),
        rad_row(answer=4, answer_type="OPEN", question_type="Other"),
        rad_row(question_type="ATRIB, SIZE", answer="No.", image_organ="abd"),
        rad_row(image="gone.png"),
        rad_row(image="../trainset.json"),
        rad_row(image="cut.png"),
        rad_row(answer=" "),
        rad_row(answer_type="MAYBE"),
        rad_row(question="x" * (1 << 20)),
    ]
    folder = rad_folder(tmp_path, [], rows)
    (folder / "images" / "cut.png").write_bytes(encode_png(np.zeros((9, 9), np.uint8))[:40])
    imported = VqaRad().read(folder, split="test")
    assert imported.rows_read == len(rows)
    assert imported.quarantined == {
        "image is missing": 1,
        OUTSIDE: 1,
        "image is unreadable": 1,
        "question or answer is empty": 1,
        "answer type is neither open nor closed": 1,
        "its texts are longer than a line of a manifest may be": 1,
    }
    assert [item.answer for item in imported.examples] == ["yes", "4", "no"]
    assert [item.answer_type for item in imported.examples] == ["closed", "open", "closed"]
    assert [item.attributes["question_type"] for item in imported.examples] == ["ABN,PRES", "OTHER", "ATTRIB,SIZE"]
    assert [item.attributes["organ"] for item in imported.examples] == ["HEAD", "HEAD", "ABD"]
    assert {item.question for item in imported.examples} == {"Is it there?"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([rad_row(), {"image_name": "a.png"}], "trainset.json row 2: image_organ is missing, expected str"),
        ([rad_row(answer=None)], "trainset.json row 1: answer is NoneType, expected str or int"),
        ([rad_row(question=["x"])], "trainset.json row 1: question is list, expected str"),
        (["x"], "trainset.json row 1 is a JSON str, expected an object"),
        ({"a": 1}, "trainset.json holds a JSON dict, expected a list"),
    ],
)
def test_vqa_rad_names_row_and_field_of_another_format(tmp_path: Path, rows: Any, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        VqaRad().read(rad_folder(tmp_path, rows, []), split="train")


def test_vqa_rad_file_missing_or_cut_off(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read") as caught:
        VqaRad().read(tmp_path, split="train")
    assert "fetch" in caught.value.hint
    folder = rad_folder(tmp_path, [], [])
    (folder / "testset.json").write_text('[{"qid": 1')
    with pytest.raises(DataError, match=r"testset\.json is not JSON"):
        VqaRad().read(folder, split="train")


def test_vqa_rad_splits_are_whole_and_apart(tmp_path: Path) -> None:
    names = tuple(f"{number}.png" for number in range(60))
    train = [rad_row(name, question=f"q{number}?") for name in names for number in range(3)]
    test = [rad_row(name, question="only in test?") for name in names[::4]] + [rad_row(names[0], question="q1?")]
    folder = rad_folder(tmp_path, train, test, names)
    by_rule = {
        rule: {split: VqaRad().read(folder, split=split, split_rule=rule) for split in ("train", "val", "test")}
        for rule in ("official", "image")
    }
    assert by_rule["official"]["test"].rows_read == len(test)
    assert {item.patient for item in by_rule["image"]["val"].examples} == {
        item.patient for item in by_rule["official"]["val"].examples
    }
    for rule, parts in by_rule.items():
        assert sum(part.rows_read for part in parts.values()) == len(train) + len(test)
        patients = [{item.patient for item in part.examples} for part in parts.values()]
        assert all(patients)
        assert not patients[0] & patients[1]
        assert bool(patients[0] & patients[2]) == (rule == "official")
    assert Counter(by_rule["image"][image_split(names[0])].quarantined) == {"repeats another row": 1}


def image_split(name: str) -> str:
    share = image_share(name)
    return "test" if share < 0.2 else "val" if share < 0.3 else "train"


def test_the_table_refuses_duplicates_and_names_the_known() -> None:
    with pytest.raises(DataError, match="registered already"):
        register(PNEUMONIA)
    with pytest.raises(DataError, match=f"expected one of {', '.join(sorted(IMPORTERS))}"):
        importer("nosuch")
    assert all(name == entry.name and entry.description for name, entry in IMPORTERS.items())


@needs_real_data
def test_real_pneumoniamnist_has_the_official_counts() -> None:
    parts = {split: PNEUMONIA.read(REAL / PNEUMONIA.filename, split=split) for split in ("train", "val", "test")}
    assert [len(part.examples) for part in parts.values()] == [4708, 524, 624]
    assert sum(item.answer == "yes" for item in parts["test"].examples) / 624 == 0.625


@needs_real_data
def test_real_vqa_rad_has_the_official_counts_and_no_leak_by_image() -> None:
    path = REAL / "vqa_rad"
    test = VqaRad().read(path, split="test")
    kept = Counter(item.answer_type for item in test.examples)
    assert (test.rows_read, test.quarantined, kept) == (451, {}, {"closed": 272, "open": 179})
    assert sum(item.answer in ("yes", "no") for item in test.examples if item.answer_type == "closed") == 251
    official = [VqaRad().read(path, split=split) for split in ("train", "val")]
    assert sum(part.rows_read for part in official) == 3064
    apart = [VqaRad().read(path, split=split, split_rule="image") for split in ("train", "val", "test")]
    images = [{ref.data for item in part.examples for ref in item.images} for part in apart]
    assert not images[0] & images[1] | images[0] & images[2] | images[1] & images[2]
    assert sum(part.rows_read for part in apart) == 3064 + 451
