"""Small sources of every importer in its real layout, for `tests.fuzz.importer_target`: a reader, its entries, where each reads.

>>> [layout.entry for layout in LAYOUTS["parquet"]]
['path_vqa']
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers_importers import case_row, save_images, save_json, save_lines
from tests.helpers_public_sets import SOURCES, write_csv

_SAID = ("What is shown? <image>", "A chest.", "Is it large?", "No.")
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Layout:
    """`make` writes a source of the importer `entry` into a folder, and says what is to be read."""

    entry: str
    make: Callable[[Path], Path]


def vqa_rad(folder: Path) -> Path:
    save_images(folder / "images", *(f"synpic{number}.jpg" for number in range(12)))
    for name, start in (("trainset.json", 0), ("testset.json", 4)):
        save_json(folder / name, [rad_row(number) for number in range(start, start + 8)])
    return folder


def rad_row(number: int) -> dict[str, Any]:
    return {
        "qid": str(number),
        "image_name": f"synpic{number}.jpg",
        "image_organ": "CHEST",
        "answer": number if number % 3 == 0 else "Yes",
        "answer_type": "OPEN" if number % 3 == 0 else "CLOSED ",
        "question_type": "PRES, ATRIB",
        "question": f"How many of {number} are there?",
        "phrase_type": "freeform",
    }


def own_rows() -> list[dict[str, Any]]:
    """With choices, several images, and numbers where texts stand elsewhere."""
    fields = {"image": "a.png", "question": "Is it?", "answer": "no", "organ": "liver"}
    rows = [{"patient": f"p{number}", "split": split, **fields} for number, split in enumerate(_SPLITS * 2)]
    rows[0] |= {"choices": "no|yes", "task": "choice", "answer_type": "closed"}
    rows[1] |= {"image": "a.png;ct/b.png", "question": "Was <image> is <image>?", "answer": "3"}
    return rows


def own_csv(folder: Path) -> Path:
    save_images(folder, "a.png", "ct/b.png")
    names = ("patient", "image", "question", "answer", "split", "organ", "choices", "task", "answer_type")
    return write_csv(folder / "table.csv", [{name: row.get(name, "") for name in names} for row in own_rows()])


def own_tsv(folder: Path) -> Path:
    """As a spreadsheet saves it: a byte order mark, tabs, CRLF, other names of columns."""
    save_images(folder, "a.png", "ct/b.png")
    lines = ["\ufeffPatient ID\tFile \tQUESTION\tFinding\tWard"]
    lines += [f"{number}.0\tct\\b.png\tIs it, now?\tno\t3" for number in range(12)]
    (folder / "table.tsv").write_bytes("\r\n".join([*lines, ""]).encode())
    save_json(folder / "columns.json", {"answer": "finding", "task": {"value": "vqa"}})
    return folder / "table.tsv"


def own_lines(folder: Path) -> Path:
    save_images(folder, "a.png", "ct/b.png")
    rows = own_rows()
    rows[0] |= {"choices": ["no", "yes"], "patient": 17}
    rows[1] |= {"image": ["a.png", "ct/b.png"], "answer": 3}
    return save_lines(folder / "table.jsonl", rows)


def labels(folder: Path) -> Path:
    save_images(folder / "images", "b.png")
    names = ("filename", "label", "patient", "scanner")
    rows = [("b.png", "pneumonia", f"{number}", "x") for number in range(12)]
    write_csv(folder / "labels.csv", [dict(zip(names, row, strict=True)) for row in rows])
    return folder


def cases(folder: Path) -> Path:
    save_images(folder / "images", "now.png", "then.png")
    rows = [case_row(patient=number, split=split) for number, split in enumerate(_SPLITS * 2)]
    save_lines(folder / "cases.jsonl", rows)
    return folder


def iu_xray(folder: Path) -> Path:
    return annotated(folder, lambda number: {"id": f"CXR{number}_IM-0{number}", "image_path": ["0.png", "1.png"]})


def mimic_cxr(folder: Path) -> Path:
    def named(number: int) -> dict[str, Any]:
        path = f"p10/p1000003{number}/s5041426{number}/02aa.jpg"
        save_images(folder / "files", path)
        return {"id": f"02aa{number}", "study_id": number, "subject_id": number, "image_path": [path]}

    return annotated(folder, named)


def annotated(folder: Path, named: Callable[[int], dict[str, Any]]) -> Path:
    """Two studies a split."""
    save_images(folder / "images", "0.png", "1.png")
    content = {
        split: [named(2 * place + more) | {"report": "The lungs are ___ clear.", "split": split} for more in (0, 1)]
        for place, split in enumerate(_SPLITS)
    }
    save_json(folder / "annotation.json", content)
    return folder


def open_i(folder: Path) -> Path:
    save_images(folder / "images" / "images_normalized", "1.png", "2.png")
    said = {"Problems": "normal", "indication": "Pain.", "findings": "Clear.", "impression": "Normal."}
    write_csv(folder / "indiana_reports.csv", [{"uid": str(number), **said} for number in range(12)])
    views = [(str(number), side) for number in range(12) for side in ("Frontal", "Lateral")]
    files = {"Frontal": "1.png", "Lateral": "2.png"}
    rows = [{"uid": uid, "filename": files[side], "projection": side} for uid, side in views]
    write_csv(folder / "indiana_projections.csv", rows)
    return folder


def report_lines(folder: Path) -> Path:
    save_images(folder, "a.png")
    said = {"findings": "Clear.", "impression": "", "filenames": ["a.png"], "indication": "Pain."}
    rows = [
        {"uid": number, "patient": float(number), "split": split, **said} for number, split in enumerate(_SPLITS * 2)
    ]
    return save_lines(folder / "reports.jsonl", rows)


def conversation(number: int) -> dict[str, Any]:
    said = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(_SAID)]
    name = f"{number}_F1"
    domain = {"chest_xray": True, "mri": False}
    return {"id": name, "image": f"{name}.jpg", "domain": domain, "conversations": said}


def conversations(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save_images(folder / "images", *(f"{number}_F1.jpg" for number in range(12)))
        (folder / name).mkdir()
        return save_json(folder / name / f"{name}.json", [conversation(number) for number in range(12)])

    return make


def llava_med_vqa(folder: Path) -> Path:
    save_images(folder / "images", *(f"{number}_F1.jpg" for number in range(12)))
    for place, name in enumerate(("train.json", "val.json", "test.json")):
        rows = [conversation(4 * place + more) | {"answer_type": "CLOSED"} for more in range(4)]
        save_json(folder / name, rows)
    return folder


def llava_med_eval(folder: Path) -> Path:
    save_images(folder / "images", "1_F1.jpg")
    fields = {"image": "1_F1.jpg", "pair_id": "1_F1", "text": "What is shown?", "gpt4_answer": "A chest."}
    rows = [{"question_id": number, "type": "conversation", **fields} for number in range(6)]
    save_lines(folder / "llava_med_eval_qa50_qa.jsonl", rows)
    return folder


def mmedagent(folder: Path) -> Path:
    """The published train file is a JSON list whose name says lines; the test file has lines."""
    save_images(folder / "images", *(f"{number}.png" for number in range(9)))
    save_json(folder / "train.jsonl", [tool_dialogue(number) for number in range(6)])
    (folder / "test.jsonl").write_text("".join(json.dumps(tool_dialogue(number)) + "\n" for number in range(6, 9)))
    return folder


def tool_dialogue(number: int) -> dict[str, Any]:
    call = {"API_name": "grounding dino", "API_params": {"image": "<imagepath>", "prompts": ["tumor"]}}
    said = [
        {"from": "human", "value": "<image>\n Where is the tumor?"},
        {"from": "gpt", "thoughts": "Find it.", "actions": [call], "value": "Please wait."},
        {"from": "human", "value": "grounding dino output: {'boxes': []}\n\nAnswer my first question: Where is it?"},
        {"from": "gpt", "thoughts": "Thanks.", "actions": [], "value": "There is none."},
    ]
    return {"image_id": str(number), "image": f"{number}.png", "conversations": said}


def _public(*names: str) -> tuple[Layout, ...]:
    return tuple(Layout(name, SOURCES[name]) for name in names)


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "rows": (Layout("vqa_rad", vqa_rad), *_public("slake_en", "slake_zh", "pubmedqa", "pubmedqa_long", "medqa", "medqa_4")),
    "tables": (
        Layout("table", own_csv),
        Layout("table", own_tsv),
        Layout("table", own_lines),
        Layout("image_folder", labels),
        Layout("cases", cases),
        *_public("pmc_vqa", "pmc_vqa_2_blank", "pmc_vqa_captions"),
    ),
    "reports": (
        Layout("iu_xray", iu_xray),
        Layout("mimic_cxr", mimic_cxr),
        Layout("findings_impression", open_i),
        Layout("findings_impression", report_lines),
    ),
    "dialogues": (
        Layout("llava_med_align", conversations("llava_med_align")),
        Layout("llava_med_instruct", conversations("llava_med_instruct")),
        Layout("llava_med_vqa", llava_med_vqa),
        Layout("llava_med_eval", llava_med_eval),
        Layout("mmedagent", mmedagent),
    ),
    "npz": _public("pneumoniamnist", "bloodmnist", "chestmnist"),
    "parquet": _public("path_vqa"),
}  # fmt: skip
