"""Small sources in the real layouts of public sets, made here: a folder or file for each entry. Import as `helpers_public_sets`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from fedmed.data.images import encode_png
from fedmed.data.importers.medmnist import SETS, MedMnist

Rows = list[dict[str, Any]]
CHOICES = ("Choice A", "Choice B", "Choice C", "Choice D")


def png(shade: int, side: int = 6) -> bytes:
    return encode_png(np.full((side, side), shade, np.uint8))


def slake_row(image: str = "xmlab0", **changes: Any) -> dict[str, Any]:
    fields = {
        "img_id": 0,
        "img_name": f"{image}/source.jpg",
        "question": "What modality is used to take this image?",
        "answer": "MRI",
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Modality",
        "triple": ["vhead", "_", "_"],
        "qid": 9,
    }
    return fields | changes


def slake(folder: Path, images: Iterable[str] = ("xmlab0", "xmlab1", "xmlab2"), **splits: Rows) -> Path:
    """Splits by the name of their file; a default row of both languages in those that are not given."""
    for shade, name in enumerate(images):
        (folder / "imgs" / name).mkdir(parents=True)
        (folder / "imgs" / name / "source.jpg").write_bytes(png(shade))
    for place, name in enumerate(("train", "validation", "test")):
        both = [slake_row(f"xmlab{place}"), slake_row(f"xmlab{place}", q_lang="zh", question="这是什么?", answer="脑")]
        (folder / f"{name}.json").write_text(json.dumps(splits.get(name, both), ensure_ascii=False))
    return folder


def path_rows(shades: Iterable[int] = (1, 1, 2), answer: Any = "yes") -> Rows:
    return [
        {"image": {"bytes": png(shade), "path": None}, "question": f"is it {number}?", "answer": answer}
        for number, shade in enumerate(shades)
    ]


def write_parquet(path: Path, rows: Rows, row_group_size: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def path_vqa(folder: Path, **splits: Rows) -> Path:
    for place, name in enumerate(("train", "validation", "test")):
        rows = splits.get(name, path_rows((10 * place, 10 * place, 10 * place + 1)))
        half = (len(rows) + 1) // 2
        for number, part in enumerate((rows[:half], rows[half:])):
            write_parquet(folder / "data" / f"{name}-{number:05d}-of-00002-abcdef0123456789.parquet", part)
    return folder


def pmc_row(figure: str = "PMC1_F1.jpg", **changes: str) -> dict[str, str]:
    """Of version 1: the answer's text, and its letter."""
    fields = {
        "Figure_path": figure,
        "Question": " What is the uptake pattern? ",
        "Answer": " Focal uptake ",
        "Choice A": " A: Diffuse uptake ",
        "Choice B": " B:Focal uptake ",
        "Choice C": " C: No uptake ",
        "Choice D": "D: Uneven uptake",
        "Answer_label": "B",
    }
    return fields | changes


def pmc_row_2(figure: str = "PMC1_Fig1_41.jpg", **changes: str) -> dict[str, str]:
    """Of version 2: the answer's letter, a caption."""
    first = {"index": "0", "Figure_path": figure, "Caption": "An uptake, focal."}
    return first | {"Question": "What is it?"} | {name: pmc_row()[name] for name in CHOICES} | {"Answer": "B"} | changes


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def pmc_vqa(folder: Path, names: Mapping[str, list[dict[str, str]]] | None = None) -> Path:
    """Train, test and their version 2 over papers PMC0 to PMC39; version 1's images apart from version 2's."""
    first = [pmc_row(f"PMC{paper}_F1.jpg") for paper in range(40)]
    second = [pmc_row_2(f"PMC{paper}_Fig1_41.jpg") for paper in range(40)]
    files = names or {"train": first[:30], "test": first[30:], "train_2": second[:30], "test_2": second[30:]}
    for place, ending in (("images", "F1"), ("figures", "Fig1_41")):
        (folder / place).mkdir(parents=True)
        for paper in range(40):
            (folder / place / f"PMC{paper}_{ending}.jpg").write_bytes(png(paper))
    for name, rows in files.items():
        write_csv(folder / f"{name}.csv", rows)
    return folder


def pubmed_row(**changes: Any) -> dict[str, Any]:
    fields = {
        "QUESTION": "Does it help?",
        "CONTEXTS": ["It was tried.", "Few were better."],
        "LABELS": ["METHODS", "RESULTS"],
        "MESHES": ["Humans"],
        "YEAR": "2011",
        "reasoning_required_pred": "yes",
        "final_decision": "maybe",
        "LONG_ANSWER": "It may help some.",
    }
    return fields | changes


def pubmedqa(folder: Path, rows: Mapping[str, Any] | None = None, test: Iterable[str] = ("100", "101")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = rows or {str(100 + number): pubmed_row() for number in range(40)}
    (folder / "ori_pqal.json").write_text(json.dumps(content, indent=4))
    (folder / "test_ground_truth.json").write_text(json.dumps(dict.fromkeys(test, "maybe"), indent=4))
    return folder


def medqa_row(number: int = 0, letters: str = "ABCD", **changes: Any) -> dict[str, Any]:
    fields = {
        "question": f"Which of the drugs of case {number} is right?",
        "answer": "drug B",
        "options": {letter: f"drug {letter}" for letter in letters},
        "meta_info": "step1",
        "answer_idx": "B",
    }
    return fields | changes


def medqa(folder: Path, **splits: Rows) -> Path:
    """Five choices at the top and four in 4_options/, which has no dev file; splits by the name of their file."""
    (folder / "4_options").mkdir(parents=True)
    for place, name in enumerate(("train", "dev", "test")):
        rows = splits.get(name, [medqa_row(100 * place + number, "ABCDE") for number in range(3)])
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if name != "dev":
            four = splits.get(f"four_{name}", [medqa_row(100 * place + number) for number in range(30)])
            text = "".join(json.dumps(row) + "\n" for row in four)
            (folder / "4_options" / f"phrases_no_exclude_{name}.jsonl").write_text(text)
    return folder


def medmnist(path: Path, entry: MedMnist, count: int = 5, side: int = 8, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, side, side), np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, len(entry.known), (count, entry.width)).astype(np.uint8)
    np.savez_compressed(path, **(arrays | changes))
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    **{entry.name: lambda folder, entry=entry: medmnist(folder / entry.filename, entry) for entry in SETS},
    **dict.fromkeys(("slake_en", "slake_zh"), slake),
    "path_vqa": path_vqa,
    **{f"pmc_vqa{kind}": pmc_vqa for kind in ("", "_blank", "_2", "_2_blank", "_captions")},
    **dict.fromkeys(("pubmedqa", "pubmedqa_long"), pubmedqa),
    **dict.fromkeys(("medqa", "medqa_4"), medqa),
}
