"""`fedmed-site import` of every format that is read row by row, as an administrator types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_importers import save_images, save_json, save_lines
from typer.testing import CliRunner

from fedmed.data.manifest import load_manifest
from fedmed.errors import DataError
from hospital_client.cli import app


def turns(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(said)]


def conversation(image: str, *said: str) -> dict[str, Any]:
    return {"id": "9_F1", "image": image, "domain": {"mri": True}, "conversations": turns(*said)}


def llava(folder: Path) -> Path:
    save_images(folder / "images", "9_F1.jpg")
    rows = [conversation("9_F1.jpg", "<image>\nWhat?", "A brain."), conversation("gone.jpg", "q?", "a")]
    return save_json(folder / "file.json", rows)


def llava_vqa(folder: Path) -> Path:
    llava(folder)
    for name in ("train", "test"):
        save_json(folder / f"{name}.json", json.loads((folder / "file.json").read_text()))
    return folder


def llava_eval(folder: Path) -> Path:
    llava(folder)
    line = {
        "question_id": 0,
        "pair_id": "9_F1",
        "image": "9_F1.jpg",
        "text": "What?\n<image>",
        "gpt4_answer": "A brain.",
    }
    return save_lines(folder / "questions.jsonl", [line, line | {"image": "gone.jpg"}])


def r2gen(folder: Path) -> Path:
    save_images(folder / "images", "a/0.png", "a/1.png")
    row = {"id": "CXR1_IM-1", "report": "Clear.", "image_path": ["a/0.png", "a/1.png"], "split": "train"}
    save_json(folder / "annotation.json", {"train": [row, row | {"image_path": ["gone.png"]}], "val": [], "test": []})
    return folder


def findings(folder: Path) -> Path:
    save_images(folder / "images", "a.png")
    (folder / "indiana_projections.csv").write_text("uid,filename,projection\n1,a.png,Frontal\n3,gone.png,Frontal\n")
    (folder / "indiana_reports.csv").write_text(
        "uid,findings,impression,split\n1,Clear.,Normal.,train\n3,Clear.,,train\n"
    )
    return folder


def table(folder: Path) -> Path:
    save_images(folder, "a.png")
    path = folder / "ward.csv"
    path.write_text("patient,image,question,answer,split\n1,a.png,Is it?,no,train\n1,gone.png,Is it?,no,train\n")
    return path


def labels(folder: Path) -> Path:
    save_images(folder, "a.png")
    (folder / "labels.csv").write_text("filename,label,patient,split\na.png,normal,1,train\ngone.png,normal,1,train\n")
    return folder


def cases(folder: Path) -> Path:
    save_images(folder, "a.png")
    row = {"patient": 1, "question": "Is it?", "answer": "no", "images": [{"path": "a.png"}], "split": "train"}
    return save_lines(folder / "cases.jsonl", [row, row | {"images": [{"path": "gone.png"}]}])


SOURCES: dict[str, Callable[[Path], Path]] = {
    "llava_med_align": llava,
    "llava_med_instruct": llava,
    "llava_med_vqa": llava_vqa,
    "llava_med_eval": llava_eval,
    "iu_xray": r2gen,
    "mimic_cxr": r2gen,
    "findings_impression": findings,
    "table": table,
    "image_folder": labels,
    "cases": cases,
}


@pytest.mark.parametrize("name", SOURCES)
def test_it_tells_what_became_of_every_row(name: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = SOURCES[name](tmp_path / "source")
    split = "test" if name == "llava_med_eval" else "train"
    result = CliRunner().invoke(app, ["import", name, str(source), str(tmp_path / "data"), "--split", split])
    assert result.exit_code == 0, result.exception
    assert result.stdout.splitlines() == [
        f"2 {split} rows read, 1 examples of 1 patients",
        "  1 rows left out; image is missing: 1",
        "  0 examples without an image",
        f"  manifest in {tmp_path / 'data'}",
    ]
    (item,) = load_manifest(tmp_path / "data").examples
    assert item.source == name and item.split == split


def test_the_command_itself_ends_with_two_lines_where_no_row_can_be_used(tmp_path: Path) -> None:
    source = cases(tmp_path)
    (tmp_path / "a.png").unlink()
    command = [sys.executable, "-m", "hospital_client.cli", "import", "cases", str(source), str(tmp_path / "data")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == DataError.exit_code
    assert done.stderr.splitlines() == [
        "error: none of the 2 train rows of cases can be used: image is missing: 2",
        "  hint: look at the first rows of the source beside the layout in docs/data.md",
    ]
    assert not (tmp_path / "data" / "manifest.jsonl").exists()


def test_a_row_of_another_kind_stops_the_import_and_leaves_nothing(tmp_path: Path) -> None:
    source = save_lines(tmp_path / "cases.jsonl", [{"patient": 1, "question": 7, "answer": "no"}])
    for split in ("train", "val", "test"):
        result = CliRunner().invoke(app, ["import", "cases", str(source), str(tmp_path / "data"), "--split", split])
        if "no example to write" not in str(result.exception):
            assert "cases.jsonl row 1: question is int, expected str" in str(result.exception)
            break
    assert not (tmp_path / "data" / "manifest.jsonl").exists()
