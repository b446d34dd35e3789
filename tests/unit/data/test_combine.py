"""Several manifests as one, as a hospital's administrator makes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers_training import record
from typer.testing import CliRunner

from fedmed.data.combine import combine
from fedmed.data.manifest import Manifest, load_manifest, write_manifest
from fedmed.errors import DataError
from hospital_client.cli import app


def manifests(tmp_path: Path) -> list[Manifest]:
    captions = [replace(record(patient, patient, 1), task="caption") for patient in (1, 2)]
    questions = [record(patient, 9 + patient, 2) for patient in (2, 3)]
    return [write_manifest(tmp_path / "captions", captions), write_manifest(tmp_path / "questions", questions)]


def test_the_same_id_is_the_same_person(tmp_path: Path) -> None:
    parts = manifests(tmp_path)
    whole = combine(tmp_path / "all", [part.folder for part in parts])
    assert [item.task for item in whole.examples] == ["caption", "caption", "vqa", "vqa"]
    assert whole.num_patients == 3
    assert whole.patients[1] == (1, 2)
    for part, place in zip(parts, (0, 2), strict=True):
        for offset, item in enumerate(part.examples):
            copied = [image.tobytes() for image in whole.images(whole.examples[place + offset])]
            assert copied == [image.tobytes() for image in part.images(item)]


def test_apart_they_are_two(tmp_path: Path) -> None:
    folders = [part.folder for part in manifests(tmp_path)]
    assert combine(tmp_path / "all", folders, apart=True).num_patients == 4


def test_from_the_command_line(tmp_path: Path) -> None:
    folders = [str(part.folder) for part in manifests(tmp_path)]
    done = CliRunner().invoke(app, ["combine", str(tmp_path / "all"), *folders])
    assert done.output.startswith("4 examples (caption, vqa) of 3 patients\n")
    assert load_manifest(tmp_path / "all").num_patients == 3


def test_what_cannot_be_combined_is_named(tmp_path: Path) -> None:
    folder = manifests(tmp_path)[0].folder
    with pytest.raises(DataError, match="expected two or more that differ"):
        combine(tmp_path / "all", [folder, folder])
    with pytest.raises(DataError, match="cannot be read"):
        combine(tmp_path / "all", [folder, tmp_path / "nowhere"])
    assert not (tmp_path / "all" / "manifest.jsonl").exists()
    combine(tmp_path / "both", [folder, tmp_path / "questions"])
    with pytest.raises(DataError, match="exists"):
        combine(tmp_path / "both", [folder, tmp_path / "questions"])
