"""Where a source is looked for, what is said when it is not there, and what the notes tell."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedmed.config import Data
from fedmed.data.images import encode_png
from fedmed.data.importers import IMPORTERS
from fedmed.data.sources import GENERATED, load_source
from fedmed.errors import DataError

DATA = Data(
    source="pneumoniamnist",
    path="",
    fallback="",
    split="official",
    train_patients=6,
    test_patients=4,
    max_test_examples=0,
    shots=0,
)


def save_pneumonia(path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(0, 256, (8, 28, 28), np.uint8) for split in ("train", "val", "test")}
    arrays["val_images"][0] = arrays["train_images"][3]
    arrays |= {f"{split}_labels": np.ones((8, 1), np.uint8) for split in ("train", "val", "test")}
    np.savez(path, **arrays)
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDMED_DATA_DIR", raising=False)


def test_found_by_path_by_variable_and_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "shared").mkdir()
    here = save_pneumonia(tmp_path / "data" / "pneumoniamnist.npz")
    from_working_directory = load_source(DATA, seed=0)
    by_path = load_source(replace(DATA, path=str(here)), seed=1)
    here.rename(tmp_path / "shared" / "pneumoniamnist.npz")
    monkeypatch.setenv("FEDMED_DATA_DIR", str(tmp_path / "shared"))
    assert from_working_directory == by_path == load_source(DATA, seed=2)
    assert [len(part) for part in (by_path.train, by_path.val, by_path.test)] == [8, 8, 8]


def test_notes_name_the_split_and_the_leak(tmp_path: Path) -> None:
    source = load_source(replace(DATA, path=str(save_pneumonia(tmp_path / "x.npz"))), seed=0)
    assert source.notes == (
        "pneumoniamnist: 8 train, 8 val and 8 test examples, official split",
        "leak: 1 of 8 val images also occur in train, and 1 of 8 val rows repeat a train row",
    )


def test_absent_data_says_where_it_was_looked_for_and_both_ways_to_get_it() -> None:
    with pytest.raises(DataError, match=os.path.join("data", "pneumoniamnist.npz")) as caught:
        load_source(DATA, seed=0)
    assert "fedmed data fetch pneumoniamnist" in caught.value.hint
    assert "FEDMED_DATA_DIR" in caught.value.hint
    with pytest.raises(DataError, match="cases was not found") as caught:
        load_source(replace(DATA, source="cases"), seed=0)
    assert "fetch" not in caught.value.hint and "set data.path to it" in caught.value.hint


def test_absent_data_falls_back_and_the_notes_say_so() -> None:
    source = load_source(replace(DATA, fallback="phantom"), seed=0)
    assert source.name == "phantom"
    assert "pneumoniamnist was not found" in source.notes[0]
    assert "phantom was used" in source.notes[0]


def test_a_wrong_path_is_told_though_there_is_a_fallback(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.npz does not exist"):
        load_source(replace(DATA, path=str(tmp_path / "missing.npz"), fallback="phantom"), seed=0)


def test_phantoms_have_the_asked_patients_and_follow_the_seed() -> None:
    source = load_source(replace(DATA, source="phantom"), seed=0)
    patients = [{item.patient for item in part} for part in (source.train, source.val, source.test)]
    assert [len(part) for part in patients] == [6, 4, 4]
    assert source == load_source(replace(DATA, source="phantom"), seed=0)
    assert source.train != load_source(replace(DATA, source="phantom"), seed=1).train


def test_the_test_split_may_be_cut_short_and_the_notes_say_so(tmp_path: Path) -> None:
    data = replace(DATA, path=str(save_pneumonia(tmp_path / "x.npz")))
    cut = load_source(replace(data, max_test_examples=3), seed=0)
    assert cut.test == load_source(data, seed=0).test[:3]
    assert cut.notes[-1] == "scores are of the first 3 of 8 test examples"
    assert load_source(replace(data, max_test_examples=9), seed=0) == load_source(data, seed=0)


def test_tool_dialogues_are_a_source_of_their_own() -> None:
    source = load_source(replace(DATA, source="phantom_tools"), seed=0)
    assert source.name == "phantom_tools" and {item.task for item in source.train} == {"tool"}
    assert len({item.patient for item in source.train}) == DATA.train_patients
    assert source.notes[0].startswith(f"phantom_tools: {len(source.train)} train")


@pytest.mark.parametrize("changes", [{"source": "nosuch"}, {"fallback": "nosuch"}])
def test_an_unknown_source_lists_the_known(changes: dict[str, str]) -> None:
    with pytest.raises(DataError, match="'nosuch', expected one of") as caught:
        load_source(replace(DATA, **changes), seed=0)
    assert all(name in caught.value.message for name in (*IMPORTERS, *GENERATED))


def test_the_official_vqa_rad_split_reports_its_leak_and_the_image_split_has_none(tmp_path: Path) -> None:
    (tmp_path / "vqa_rad" / "images").mkdir(parents=True)
    names = [f"{number}.png" for number in range(40)]
    for shade, name in enumerate(names):
        (tmp_path / "vqa_rad" / "images" / name).write_bytes(encode_png(np.full((4, 4), shade, np.uint8)))
    fields = {"image_organ": "HEAD", "answer": "No", "answer_type": "CLOSED", "question_type": "PRES"}
    rows = [fields | {"image_name": name, "question": "Is it?", "phrase_type": "para"} for name in names]
    (tmp_path / "vqa_rad" / "trainset.json").write_text(json.dumps([*rows, fields | rows[0] | {"image_name": "gone"}]))
    (tmp_path / "vqa_rad" / "testset.json").write_text(json.dumps(rows[:5]))
    data = replace(DATA, source="vqa_rad", path=str(tmp_path / "vqa_rad"))
    official, by_image = (load_source(replace(data, split=rule), seed=0) for rule in ("official", "image"))
    assert any(note.startswith("leak:") and "test rows repeat a train row" in note for note in official.notes)
    assert any("1 image is missing" in note for note in official.notes)
    assert not any(note.startswith("leak:") for note in by_image.notes)


def test_a_source_without_a_usable_example_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vqa_rad").mkdir()
    for name in ("trainset.json", "testset.json"):
        (tmp_path / "vqa_rad" / name).write_text("[]")
    with pytest.raises(DataError, match="no usable example in train and test"):
        load_source(replace(DATA, source="vqa_rad", path=str(tmp_path / "vqa_rad")), seed=0)


def test_the_repr_of_a_source_shows_no_example(tmp_path: Path) -> None:
    source = load_source(replace(DATA, path=str(save_pneumonia(tmp_path / "x.npz"))), seed=0)
    assert source.train[0].patient not in repr(source)
