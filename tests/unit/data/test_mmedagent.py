"""The importer of tool dialogues against files made here in MMedAgent's layout, with the dirt such files have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmed.data.images import encode_png
from fedmed.data.importers import importer
from fedmed.data.importers.folder_images import OUTSIDE
from fedmed.data.manifest import load_manifest, write_manifest
from fedmed.errors import DataError
from fedmed.tools import read_outputs, read_turn

AGAIN = "grounding dino output: {'boxes': []}\n\nAnswer my first question: Where is the tumor?"


def dialogue(image: str = "a.png", **changes: Any) -> dict[str, Any]:
    call = {"API_name": "grounding dino", "API_params": {"image": "<imagepath>", "prompts": ["tumor"]}}
    said = [
        {"from": "human", "value": "<image>\n Where is the tumor?"},
        {"from": "gpt", "thoughts": "Find it.", "actions": [call], "value": "Please wait."},
        {"from": "human", "value": AGAIN},
        {"from": "gpt", "thoughts": "Thanks.", "actions": [], "value": "There is none."},
    ]
    return {"image_id": Path(image).stem, "image": image, "conversations": said} | changes


def turns(*said: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": speaker} | (value if isinstance(value, dict) else {"value": value}) for speaker, value in said]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    pixels = np.zeros((8, 8), np.uint8)
    for name in ("a.png", "b.png", *(f"{number}.png" for number in range(40))):
        (tmp_path / "images" / name).write_bytes(encode_png(pixels))
    return tmp_path


def write(folder: Path, rows: list[Any], name: str = "train.jsonl") -> Path:
    (folder / name).write_text(json.dumps(rows, indent=4))
    return folder


def test_a_dialogue_of_two_answers_is_two_examples(folder: Path) -> None:
    imported = importer("mmedagent").read(write(folder, [dialogue()]), split="train")
    call, answer = imported.examples
    assert (imported.rows_read, imported.quarantined) == (1, {})
    assert (call.question, call.history, len(call.images)) == ("<image>\n Where is the tumor?", (), 1)
    assert (call.task, call.answer_type, call.patient, call.split) == ("tool", "open", "a", "train")
    assert read_turn(call.answer).actions[0].params["prompts"] == ["tumor"]
    assert (call.attributes, answer.attributes) == (
        {"tool": "grounding", "turn": "call"},
        {"tool": "none", "turn": "answer"},
    )
    assert [(said.question, said.answer) for said in answer.history] == [(call.question, call.answer)]
    assert read_outputs(answer.question)[1] == "Where is the tumor?"
    assert read_turn(answer.answer).value == "There is none."


def test_what_is_imported_survives_a_site_manifest(folder: Path) -> None:
    imported = importer("mmedagent").read(write(folder, [dialogue()]), split="train")
    write_manifest(folder / "site", imported.examples)
    read = load_manifest(folder / "site").examples
    assert [(item.answer, item.history, item.task) for item in read] == [
        (item.answer, item.history, item.task) for item in imported.examples
    ]


def test_plain_answers_lines_and_dialogues_without_an_image_are_read(folder: Path) -> None:
    rows = [
        {"id": 3, "conversations": turns(("human", "What is galactosemia? <image>"), ("gpt", "A disease."))},
        {"conversations": turns(("user", "Thanks."), ("assistant", {"value": "Welcome.", "thoughts": None}))},
    ]
    (folder / "test.json").write_text("\ufeff" + "\n".join(json.dumps(row) for row in rows))
    write(folder, [])
    examples = importer("mmedagent").read(folder, split="test").examples
    assert [(item.patient, item.question, len(item.images)) for item in examples] == [
        ("3", "What is galactosemia?", 0),
        ("test.json row 2", "Thanks.", 0),
    ]
    assert read_turn(examples[0].answer).value == "A disease."
    assert importer("mmedagent").read(folder, split="val").examples == ()


def test_images_of_one_name_in_two_folders_are_two_patients(folder: Path) -> None:
    rows = [dialogue("ct/0001.png"), dialogue("mr/0001.png")]
    for row in rows:
        (folder / "images" / row["image"]).parent.mkdir()
        (folder / "images" / row["image"]).write_bytes((folder / "images" / "a.png").read_bytes())
    imported = importer("mmedagent").read(write(folder, rows), split="train")
    assert {example.patient for example in imported.examples} == {"ct/0001", "mr/0001"}


def test_rows_that_cannot_be_used_are_quarantined_for_a_reason(folder: Path) -> None:
    (folder / "images" / "text.png").write_text("no image")
    marked = {"thoughts": 'a "value👉"', "actions": [], "value": "v"}
    rows = [
        dialogue(),
        dialogue("nosuch.png"),
        dialogue("../train.jsonl"),
        dialogue("text.png"),
        dialogue(conversations=dialogue()["conversations"][:3]),
        dialogue(conversations=dialogue()["conversations"][1:3]),
        dialogue(conversations=[]),
        dialogue(conversations=turns(("human", "<image>"), ("gpt", "a"))),
        dialogue(conversations=turns(("human", "q"), ("gpt", ""))),
        dialogue(conversations=turns(("human", "q"), ("gpt", marked))),
        dialogue(conversations=turns(("human", "<image> q <image>"), ("gpt", "a"))),
        dialogue(conversations=turns(("human", "q" * 200_000), ("gpt", "a"))),
        dialogue(conversations=turns(*[("human", "q"), ("gpt", "a")] * 257)),
    ]
    imported = importer("mmedagent").read(write(folder, rows), split="train")
    assert imported.quarantined == {
        "image is missing": 1,
        OUTSIDE: 1,
        "image is unreadable": 1,
        "the speakers do not take turns, question and answer": 3,
        "question or answer is empty": 2,
        "a turn is too long, or holds a marker of its parts": 1,
        "text is too long": 1,
        "conversation has more than 256 answers": 1,
    }
    assert imported.rows_read == len(rows) and len(imported.examples) == 2 + 1
    assert imported.examples[2].question == "q"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"conversations": "x"}, "conversations is not a list"),
        ({"conversations": [1, 2]}, "a turn is int, expected an object"),
        ({"conversations": turns(("human", 1), ("gpt", "a"))}, "value is int, expected a text"),
        ({"conversations": turns(("human", "q"), ("gpt", {"thoughts": "t"}))}, "value is missing"),
        (
            {"conversations": turns(("human", "q"), ("gpt", {"value": "v", "actions": "[]"}))},
            "actions is str, expected a list",
        ),
        (
            {"conversations": turns(("human", "q"), ("gpt", {"value": "v", "actions": [{"API_name": 1}]}))},
            "API_name is int",
        ),
        ({"image": ["a.png"]}, "image is list, expected a text"),
    ],
)
def test_a_field_of_another_type_names_file_row_and_field(folder: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        importer("mmedagent").read(write(folder, [dialogue(), dialogue() | row]), split="train")
    assert caught.value.message.startswith("train.jsonl row 2: ") and expected in caught.value.message


def test_the_image_rule_shares_no_image_and_loses_no_row(folder: Path) -> None:
    write(folder, [dialogue(f"{number}.png") for number in range(30)])
    write(folder, [dialogue(f"{number}.png") for number in range(20, 40)], "test.jsonl")
    parts = {
        split: importer("mmedagent").read(folder, split=split, split_rule="image") for split in ("train", "val", "test")
    }
    owners = {split: {item.patient for item in part.examples} for split, part in parts.items()}
    assert sum(part.rows_read for part in parts.values()) == 50
    assert all(owners.values()) and sum(map(len, owners.values())) == len(set.union(*owners.values())) == 40
    assert len(owners["train"]) > len(owners["test"]) > 0


def test_a_folder_without_dialogues_or_with_a_broken_file_is_told(folder: Path) -> None:
    with pytest.raises(DataError, match=r"holds no dialogues, expected train\.jsonl"):
        importer("mmedagent").read(folder, split="train")
    (folder / "train.jsonl").write_text(json.dumps([dialogue()])[:-30])
    with pytest.raises(DataError, match=r"train\.jsonl is not JSON after row 0"):
        importer("mmedagent").read(folder, split="train")
