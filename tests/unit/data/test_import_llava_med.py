"""LLaVA-Med's files, made here in their layout with the real files' dirt."""

from __future__ import annotations

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

from fedmed.data.importers.llava_med import ALIGN, INSTRUCT, LlavaMedEval, LlavaMedVqa
from fedmed.errors import DataError


def turns(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(said)]


def row(article: int = 1, *said: str, **changes: Any) -> dict[str, Any]:
    name = f"{article}_F1"
    domain = {"chest_xray": True, "mri": False, "ct_scan": True}
    fields = {"id": name, "image": f"{name}.jpg", "domain": domain, "conversations": turns(*(said or ("q?", "a.")))}
    return {key: value for key, value in (fields | changes).items() if value != "left out"}


def folder(path: Path, rows: list[Any], name: str = "instruct/llava_med_instruct_10k.json") -> Path:
    """LLaVA-Med's own data/ folder: the file in a folder, the images in another."""
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    save_images(path / "images", *(f"{article}_F1.jpg" for article in range(1, 40)))
    return save_json(path / name, rows)


def test_a_conversation_becomes_one_example_for_each_answer(tmp_path: Path) -> None:
    said = ("What is\n shown?\n<image>", "A chest.", "Is it large?", "No.\nNot very.", "Why?", "It is small.")
    first, second, third = read_all(INSTRUCT, folder(tmp_path, [row(1, *said)]))
    assert [len(item.history) for item in (first, second, third)] == [0, 1, 2]
    assert (first.question, first.answer) == ("What is shown? <image>", "A chest.")
    assert (third.question, third.answer) == ("Why?", "It is small.")
    assert [(past.question, past.answer) for past in third.history] == [
        ("What is shown? <image>", "A chest."),
        ("Is it large?", "No. Not very."),
    ]
    assert len({item.images for item in (first, second, third)}) == 1
    assert {(item.patient, item.task, item.answer_type, item.attributes["modality"]) for item in (first, second)} == {
        ("1", "instruct", "open", "chest_xray,ct_scan")
    }


@pytest.mark.parametrize(
    ("said", "questions"),
    [
        (("<image>\nq?", "a"), ["<image> q?"]),
        (("q?\n<image>", "a"), ["q? <image>"]),
        (("q?", "a"), ["q?"]),
        (("<image>", "a"), ["<image>"]),  # LLaVA-Med's remove_instructions.py leaves nothing else
        (("q?", "a", "now?\n<image>", "b"), ["q?", "now?"]),
        (("<image>q<image>?", "a"), ["q ?"]),
        (("<image>q?", "see <image>"), ["<image>q?"]),
    ],
)
def test_an_image_stands_where_the_first_question_has_it(
    tmp_path: Path, said: tuple[str, ...], questions: list[str]
) -> None:
    examples = read_all(INSTRUCT, folder(tmp_path, [row(1, *said)]))
    assert [item.question for item in examples] == questions
    assert all(len(item.images) == 1 for item in examples)
    assert not any("<image>" in item.answer for item in examples)


def test_the_real_files_dirt(tmp_path: Path) -> None:
    rows = [
        row(1, conversations="left out", conversatons=turns("q?", "a")),
        row(2, conversations=[{"from": "gpt", "value": "Hello."}, *turns("q?", "a")]),
        row(3, "q?", "a", "and?"),
        row(4, conversations=[{"from": "user", "value": "q?"}, {"from": "assistant", "value": "a"}]),
        row(5, image="left out", domain="left out"),
        row(6, domain={"mri": False}),
        row(7, image="gone.jpg"),
        row(8, image="8_F2.jpg"),
        row(9, "q?"),
        row(10, conversations=[]),
        row(11, conversations=[*turns("q?"), *turns("q?", "a")]),
        row(12, " ", "a"),
        row(13, "q?", "\n"),
        row(14, id=14, image="PMC0014_g1.jpg"),
        row(15, *["q?", "a"] * 257),
    ]
    path = folder(tmp_path, rows)
    (tmp_path / "images" / "8_F2.jpg").write_bytes(b"\xff\xd8cut off")
    save_images(tmp_path / "images", "PMC0014_g1.jpg")
    kept = {item.patient: item for item in read_all(INSTRUCT, path)}
    assert set(kept) == {"1", "2", "3", "4", "5", "6", "PMC0014"}
    assert not kept["5"].images
    assert [kept[name].attributes["modality"] for name in ("4", "5", "6")] == ["chest_xray,ct_scan", "unknown", "other"]
    assert quarantined(INSTRUCT, path) == {
        "image is missing": 1,
        "image is unreadable": 1,
        "conversation has no answer": 2,
        "two turns of one speaker follow each other": 1,
        "question or answer is empty": 2,
        "conversation has more than 256 answers": 1,
    }


def test_the_longest_conversation_is_read(tmp_path: Path) -> None:
    examples = read_all(INSTRUCT, folder(tmp_path, [row(1, *["q?", "a"] * 256)]))
    assert [len(item.history) for item in examples] == list(range(256))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"conversations": "left out"}, "10k.json row 1: conversations is missing, expected a list of turns"),
        ({"conversations": ["x"]}, r"row 1 conversations\[0\] is str, expected an object"),
        ({"conversations": [{"value": "q"}]}, r"row 1 conversations\[0\]: from is missing, expected str"),
        ({"conversations": [{"from": "human", "value": 3}]}, r"row 1 conversations\[0\]: value is int, expected str"),
        ({"conversations": [{"from": "system", "value": "x"}]}, r"\[0\]: from is another speaker, expected human or"),
        ({"id": None}, "row 1: id is NoneType, expected str or int"),
        ({"image": 3}, "row 1: image is int, expected str"),
        ({"domain": ["mri"]}, "row 1: domain is list, expected an object of true and false"),
    ],
)
def test_row_and_field_of_another_kind_are_named(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_all(INSTRUCT, folder(tmp_path, [row(1, **changes)]))


def test_splits_are_by_article_and_apart(tmp_path: Path) -> None:
    path = folder(tmp_path, [row(number % 30 + 1) for number in range(60)])
    patients = [
        {item.patient for item in INSTRUCT.read(path, split=split).examples} for split in ("train", "val", "test")
    ]
    assert all(patients) and sum(map(len, patients)) == 30
    assert len(patients[0]) > len(patients[2]) > 0


def test_captions_to_align_by_are_single_turns(tmp_path: Path) -> None:
    (item,) = read_all(ALIGN, folder(tmp_path, [row(3, "Summarise it.\n<image>", "A CT.")], "llava_med_align.json"))
    assert (item.task, item.source, item.question, item.answer) == (
        "caption",
        "llava_med_align",
        "Summarise it. <image>",
        "A CT.",
    )


def vqa_row(image: str, answer: str = "Yes", **changes: Any) -> dict[str, Any]:
    said = turns(f"<image>\nIs it? {answer}", answer)
    return {"id": 7, "image": image, "conversations": said, "answer_type": "CLOSED"} | changes


def vqa_folder(path: Path, **files: list[Any]) -> Path:
    names = {item["image"] for rows in files.values() for item in rows if isinstance(item, dict)}
    save_images(path / "images", *sorted(names))
    for name, rows in files.items():
        save_json(path / f"{name}.json", rows)
    return path


def test_vqa_is_read_by_file_and_by_image(tmp_path: Path) -> None:
    names = [f"syn{number}/source.jpg" for number in range(40)]
    path = vqa_folder(
        tmp_path, train=[vqa_row(name) for name in names], test=[vqa_row(names[0], "4", answer_type="OPEN")]
    )
    entry = LlavaMedVqa()
    official = {split: entry.read(path, split=split) for split in ("train", "val", "test")}
    assert official["test"].rows_read == 1 and official["train"].rows_read + official["val"].rows_read == 40
    assert 0 < official["val"].rows_read < 12
    (item,) = official["test"].examples
    assert (item.answer, item.answer_type, item.patient, item.task) == ("4", "open", "syn0/source", "vqa")
    assert {(each.answer, each.answer_type) for each in official["train"].examples} == {("yes", "closed")}
    apart = [
        {each.patient for each in entry.read(path, split=split, split_rule="image").examples} for split in official
    ]
    assert all(apart) and sum(map(len, apart)) == 40
    save_json(path / "val.json", [vqa_row(names[0])])
    assert [entry.read(path, split=split).rows_read for split in official] == [40, 1, 1]


def test_vqa_without_answer_type_is_closed_for_yes_and_no(tmp_path: Path) -> None:
    rows = [vqa_row("a.jpg", answer, answer_type=None) for answer in ("No.", "left lung")]
    found = LlavaMedVqa().read(
        vqa_folder(tmp_path, train=[], test=[*rows, vqa_row("a.jpg", answer_type="maybe")]), split="test"
    )
    assert [(item.answer, item.answer_type) for item in found.examples] == [("no", "closed"), ("left lung", "open")]
    assert found.quarantined == {"answer type is neither open nor closed": 1}


def test_evaluation_questions_are_all_test(tmp_path: Path) -> None:
    line = {"question_id": 0, "image": "1_F1.jpg", "pair_id": "1_F1", "text": "What is it?\n<image>", "gpt4_answer": "A chest.",
            "fig_caption": "x", "in_text_mention": [{"tokens": "x"}], "domain": {"mri": True}, "type": "conversation"}  # fmt: skip
    folder(tmp_path, [])
    path = save_lines(tmp_path / "llava_med_eval_qa50_qa.jsonl", [line])
    (item,) = read_all(LlavaMedEval(), path)
    assert (item.split, item.patient, item.question, item.answer) == ("test", "1", "What is it? <image>", "A chest.")
    assert dict(item.attributes) == {"type": "conversation", "modality": "mri"}
    save_lines(path, [line | {"text": "What \ud800?"}])  # half a character, which JSON allows
    assert [item.question for item in read_all(LlavaMedEval(), path)] == ["What \ufffd?"]
    save_lines(path, [{key: value for key, value in line.items() if key != "gpt4_answer"}])
    with pytest.raises(DataError, match="row 1: answer is missing, expected str"):
        read_all(LlavaMedEval(), path)


def test_any_damage_is_told_or_quarantined(tmp_path: Path) -> None:
    rows = [row(number, "<image>\nq?", "a", "and?", "b") for number in range(1, 7)]
    path = folder(tmp_path, rows)
    require_survives_damage(INSTRUCT, rows, lambda content: save_json(path, content))
    require_survives_bytes(INSTRUCT, folder(tmp_path, rows), path)
    vqa = {"train": [vqa_row("a.jpg"), vqa_row("b.jpg")], "test": [vqa_row("c.jpg")]}
    place = vqa_folder(tmp_path / "vqa", **vqa)

    def save(content: Any) -> Path:
        for name in vqa:
            (place / f"{name}.json").unlink(missing_ok=True)
            if name in content:
                save_json(place / f"{name}.json", content[name])
        return place

    require_survives_damage(LlavaMedVqa(), vqa, save)
