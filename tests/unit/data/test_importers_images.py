"""SLAKE, PathVQA and PMC-VQA, and all of MedMNIST: files in the real layout, with the real files' dirt."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from helpers_public_sets import (
    medmnist,
    path_rows,
    path_vqa,
    pmc_row,
    pmc_row_2,
    pmc_vqa,
    png,
    slake,
    slake_row,
    write_parquet,
)

from fedmed.data.images import encode_png, open_image
from fedmed.data.importers import folder_images, importer
from fedmed.data.importers.folder_images import OUTSIDE
from fedmed.data.importers.lettered import CONTRADICTS, NOT_A_CHOICE, right_choice, unlettered
from fedmed.data.importers.medmnist import SETS
from fedmed.data.importers.sifting import ELSEWHERE
from fedmed.errors import DataError

SPLITS = ("train", "val", "test")


def test_slake_gives_each_language_its_rows_and_survives_the_dirt(tmp_path: Path) -> None:
    rows = [
        slake_row(answer="Yes", answer_type="CLOSED ", content_type="Abnormality", base_type="KVQA"),
        slake_row(answer=2, content_type="Quantity"),
        slake_row(q_lang="zh", question="图中有  几个肾脏?", answer="2"),
        slake_row(q_lang="fr"),
        slake_row("gone"),
        slake_row(img_name="../train.json"),
        slake_row(answer=" "),
        slake_row(answer_type="?"),
    ]
    folder = slake(tmp_path, train=rows)
    (folder / "validation.json").rename(folder / "validate.json")
    english, chinese = (importer(name).read(folder, split="train") for name in ("slake_en", "slake_zh"))
    assert english.rows_read == 7
    assert english.quarantined == {
        "language is neither en nor zh": 1,
        "image is missing": 1,
        OUTSIDE: 1,
        "question or answer is empty": 1,
        "answer type is neither open nor closed": 1,
    }
    assert [item.answer for item in english.examples] == ["yes", "2"]
    assert dict(english.examples[0].attributes) == {
        "organ": "Abdomen",
        "modality": "MRI",
        "answer_type": "closed",
        "content_type": "Abnormality",
        "base_type": "kvqa",
        "lang": "en",
    }
    assert {(item.patient, item.source, item.split) for item in english.examples} == {("xmlab0", "slake_en", "train")}
    assert (chinese.rows_read, [item.question for item in chinese.examples]) == (2, ["图中有 几个肾脏?"])
    assert importer("slake_en").read(folder, split="val").examples[0].patient == "xmlab1"


def test_an_image_that_is_held_out_stays_held_out(tmp_path: Path) -> None:
    train = [slake_row("xmlab0"), slake_row("xmlab2"), slake_row("xmlab1")]
    folder = slake(tmp_path, train=train, validation=[slake_row("xmlab1"), slake_row("xmlab2")])
    parts = [importer("slake_en").read(folder, split=split, split_rule="image") for split in SPLITS]
    assert [[item.patient for item in part.examples] for part in parts] == [["xmlab0"], ["xmlab1"], ["xmlab2"]]
    assert [dict(part.quarantined) for part in parts] == [{ELSEWHERE: 2}, {ELSEWHERE: 1}, {}]
    assert len(importer("slake_en").read(folder, split="train").examples) == 3


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"img_name": None}, r"train\.json row 1: img_name is NoneType, expected str"),
        ({"answer": ["MRI"]}, r"train\.json row 1: answer is list, expected str or int or float"),
        ({"q_lang": 3}, r"train\.json row 1: q_lang is int, expected str"),
    ],
)
def test_slake_names_row_and_field(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        importer("slake_en").read(slake(tmp_path, train=[slake_row(**row)]), split="train")


def test_path_vqa_takes_equal_images_as_one_patient(tmp_path: Path) -> None:
    broken = [
        {"image": {"bytes": data, "path": "a.jpg"}, "question": "q?", "answer": "a"} for data in (None, b"\xff\xd8")
    ]
    rows = [*path_rows((1, 2, 1)), *broken, *path_rows((3,), answer="in the liver"), *path_rows((3,), answer=" No.")]
    folder = path_vqa(tmp_path, train=[*rows, *path_rows((3,), answer="")])
    imported = importer("path_vqa").read(folder, split="train")
    assert imported.rows_read == 8
    assert imported.quarantined == {"image is missing": 1, "image is unreadable": 1, "question or answer is empty": 1}
    assert [item.answer for item in imported.examples] == ["yes"] * 3 + ["in the liver", "no"]
    assert [item.answer_type for item in imported.examples] == ["closed"] * 3 + ["open", "closed"]
    patients = [item.patient for item in imported.examples]
    assert patients[0] == patients[2] != patients[1]
    assert len(set(patients)) == 3
    assert imported.examples[0].images[0].data == png(1)


def test_path_vqa_without_what_is_held_out(tmp_path: Path) -> None:
    folder = path_vqa(tmp_path, train=path_rows((1, 2, 3)), validation=path_rows((2, 3)), test=path_rows((3, 3)))
    parts = [importer("path_vqa").read(folder, split=split, split_rule="image") for split in SPLITS]
    assert [len(part.examples) for part in parts] == [1, 1, 2]
    assert [part.quarantined.get(ELSEWHERE, 0) for part in parts] == [2, 1, 0]


def test_path_vqa_says_what_is_wrong_with_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, folder = importer("path_vqa"), path_vqa(tmp_path)
    first, second = sorted((folder / "data").glob("train-*"))
    whole = second.read_bytes()
    second.unlink()
    with pytest.raises(DataError, match=r"holds 1 of the files train-\.\.\.\.parquet, expected 2"):
        entry.read(folder, split="train")
    second.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=r"train-00001-\S+ is not a readable parquet file after row 0"):
        entry.read(folder, split="train")
    write_parquet(second, [{"image": {"bytes": png(1)}, "question": 4, "answer": "x"}])
    with pytest.raises(DataError, match=r"train-00001-\S+ row 1: question is int, expected str"):
        entry.read(folder, split="train")
    write_parquet(second, [{"image": "a.png", "question": "q", "answer": "x"}])
    with pytest.raises(DataError, match="row 1: image is str, expected an object with bytes"):
        entry.read(folder, split="train")
    write_parquet(second, [{"image": None, "question": "q"}])
    with pytest.raises(DataError, match="lacks the columns answer, it has image, question"):
        entry.read(folder, split="train")
    with pytest.raises(DataError, match=r"holds no validation-00000-of-\.\.\.\.parquet"):
        entry.read(first.parent / "elsewhere", split="val")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match="pyarrow is not installed") as caught:
        entry.read(folder, split="train")
    assert "fedmed[parquet]" in caught.value.hint


def test_parquet_is_read_in_pieces(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    rows = [
        {"image": {"bytes": noise.bytes(100_000), "path": None}, "question": "q", "answer": "a"} for _ in range(200)
    ]
    for name in ("train", "validation", "test"):
        write_parquet(
            tmp_path / f"{name}-00000-of-00001.parquet", rows[: None if name == "train" else 1], row_group_size=10
        )
    pool = pyarrow.default_memory_pool()
    before = pool.bytes_allocated()
    peak = 0
    from fedmed.data.importers.parquet import parquet_rows

    for _ in parquet_rows(tmp_path / "train-00000-of-00001.parquet", ("image",)):
        peak = max(peak, pool.bytes_allocated() - before)
    assert 0 < peak < 6_000_000 < (tmp_path / "train-00000-of-00001.parquet").stat().st_size


def test_pmc_vqa_lists_its_choices_as_medvint_does(tmp_path: Path) -> None:
    folder = pmc_vqa(tmp_path)
    chosen, blank, second = (
        importer(name).read(folder, split="test") for name in ("pmc_vqa", "pmc_vqa_blank", "pmc_vqa_2")
    )
    assert (chosen.rows_read, len(chosen.examples), len(second.examples)) == (10, 10, 10)
    example = chosen.examples[0]
    assert example.question == (
        "What is the uptake pattern? Choices: A: Diffuse uptake B: Focal uptake C: No uptake D: Uneven uptake"
    )
    assert example.choices == ("Diffuse uptake", "Focal uptake", "No uptake", "Uneven uptake")
    assert (example.answer, example.answer_type, example.task) == ("Focal uptake", "closed", "choice")
    assert (example.patient, dict(example.attributes)) == ("PMC30", {"label": "B"})
    assert second.examples[0].answer == "Focal uptake"
    assert second.examples[0].images[0].data == png(30)
    assert [(item.question, item.answer, item.answer_type, item.choices, item.task) for item in blank.examples[:1]] == [
        ("What is the uptake pattern?", "Focal uptake", "open", (), "vqa")
    ]


def test_pmc_vqa_survives_the_dirt(tmp_path: Path) -> None:
    rows = [
        pmc_row(Answer="B: Focal uptake", Answer_label=""),
        pmc_row(Answer="focal Uptake", Answer_label=" b "),
        pmc_row(Answer="Diffuse uptake"),
        pmc_row(Answer="something else", Answer_label=""),
        pmc_row(Answer_label="X"),
        pmc_row(**{"Choice C": " C: "}),
        pmc_row(**{"Choice C": "C: Diffuse uptake"}),
        pmc_row("PMC99_F1.jpg"),
        pmc_row("figure.jpg"),
        pmc_row(Question=" "),
    ]
    imported = importer("pmc_vqa").read(pmc_vqa(tmp_path, {"train": rows, "test": rows}), split="test")
    assert imported.rows_read == len(rows)
    assert imported.quarantined == {
        CONTRADICTS: 1,
        NOT_A_CHOICE: 2,
        "a choice is empty": 1,
        "the answer is not one of the choices, or two choices are the same": 1,
        "image is missing": 1,
        "figure names no paper": 1,
        "question or answer is empty": 1,
    }
    assert [item.answer for item in imported.examples] == ["Focal uptake"] * 2


def test_pmc_vqa_spells_answer_in_two_ways_and_names_what_is_missing(tmp_path: Path) -> None:
    misspelt = [{("Anwser" if key == "Answer" else key): value for key, value in pmc_row().items()}]
    folder = pmc_vqa(tmp_path / "a", {"train": misspelt, "test": misspelt})
    assert importer("pmc_vqa").read(folder, split="test").examples[0].answer == "Focal uptake"
    with pytest.raises(DataError, match=r"test\.csv row 1: Caption is missing, expected str"):
        importer("pmc_vqa_captions").read(folder, split="test")
    less = [{key: value for key, value in pmc_row().items() if key != "Choice C"}]
    with pytest.raises(DataError, match=r"test\.csv row 1: Choice C is missing, expected str"):
        importer("pmc_vqa").read(pmc_vqa(tmp_path / "b", {"train": less, "test": less}), split="test")
    with pytest.raises(DataError, match=r"train_2\.csv cannot be read"):
        importer("pmc_vqa_2").read(folder, split="train")


def test_pmc_vqa_captions_come_once_a_figure(tmp_path: Path) -> None:
    rows = [pmc_row_2(), pmc_row_2(Question="And now?"), pmc_row_2("PMC2_Fig1_41.jpg", Caption="Another.")]
    imported = importer("pmc_vqa_captions").read(pmc_vqa(tmp_path, {"train_2": rows, "test_2": rows}), split="test")
    assert [(item.answer, item.task) for item in imported.examples] == [
        ("An uptake, focal.", "caption"),
        ("Another.", "caption"),
    ]
    assert (imported.rows_read, imported.quarantined) == (3, {"repeats a figure": 1})


def test_pmc_vqa_papers_are_apart_under_image(tmp_path: Path) -> None:
    train = [pmc_row(f"PMC{paper}_F1.jpg") for paper in range(40)]
    folder = pmc_vqa(tmp_path, {"train": train, "test": train[5:10]})
    parts = {split: importer("pmc_vqa").read(folder, split=split, split_rule="image") for split in SPLITS}
    papers = [{item.patient for item in part.examples} for part in parts.values()]
    assert all(papers)
    assert not papers[0] & papers[1] | papers[0] & papers[2] | papers[1] & papers[2]
    assert sum(part.rows_read for part in parts.values()) == 45
    assert sum(part.quarantined.get(ELSEWHERE, 0) for part in parts.values()) == 5


@pytest.mark.parametrize(
    ("label", "answer", "expected"),
    [
        ("B", "right", 1),
        ("", "right", 1),
        ("", "b.", 1),
        ("(b)", "", 1),
        ("B", "of another spelling", 1),
        ("A", "right", CONTRADICTS),
        ("", "neither", NOT_A_CHOICE),
        ("C", "right", NOT_A_CHOICE),
        ("", "", NOT_A_CHOICE),
    ],
)
def test_what_is_right_by_letter_and_text(label: str, answer: str, expected: int | str) -> None:
    assert right_choice(["left", "right"], label, answer) == expected


def test_letters_that_are_names_stay() -> None:
    assert unlettered("A. fumigatus", "A") == "A. fumigatus"
    assert unlettered(" (B) both", "B") == "both"
    assert unlettered("B: both", "A") == "B: both"
    assert right_choice(["B", "A"], "", "B") == 0


@pytest.mark.parametrize("entry", SETS, ids=lambda entry: entry.name)
def test_every_medmnist_set_asks_in_words(tmp_path: Path, entry: Any) -> None:
    path = medmnist(tmp_path / entry.filename, entry, count=40)
    imported = entry.read(path, split="val")
    assert (imported.rows_read, len(imported.examples)) == (40, 40 * entry.width)
    assert all(item.question.endswith("?") and "{" not in item.question for item in imported.examples)
    assert {item.answer_type for item in imported.examples} == {"closed"}
    answers = {item.answer for item in imported.examples}
    assert len(answers) == len(entry.known)
    assert entry.description.endswith(("(CC BY 4.0)", "(CC BY-NC 4.0)"))


def test_chestmnist_is_fourteen_questions_an_image(tmp_path: Path) -> None:
    entry = importer("chestmnist")
    labels = np.zeros((3, 14), np.int64)
    labels[1, 4] = labels[1, 13] = 1
    path = medmnist(tmp_path / "chestmnist_64.npz", entry, 3, 64, train_labels=labels)  # type: ignore[arg-type]
    examples = entry.read(path, split="train").examples
    assert len(examples) == 42
    assert Counter(item.patient for item in examples).most_common(1)[0][1] == 14
    assert [item.question for item in examples if item.answer == "yes"] == [
        "Does this chest X-ray show a mass?",
        "Does this chest X-ray show a hernia?",
    ]
    assert dict(examples[12].attributes) == {"finding": "pleural", "label": "no"}
    with pytest.raises(DataError, match=r"train_labels holds \[2\], expected \[0, 1\]"):
        entry.read(medmnist(path, entry, 3, 64, train_labels=labels * 2), split="train")  # type: ignore[arg-type]


def test_a_medmnist_file_says_its_size(tmp_path: Path) -> None:
    entry = importer("pathmnist")
    path = medmnist(tmp_path / "pathmnist_64.npz", entry, 2, 64)  # type: ignore[arg-type]
    assert open_image(entry.read(path, split="test").examples[0].images[0], None).size == (64, 64)
    with pytest.raises(DataError, match=r"train_images is uint8 \[2, 28, 28\], expected images of 64 x 64"):
        entry.read(medmnist(path, entry, 2, 28), split="train")  # type: ignore[arg-type]


def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    import io
    import zipfile

    entry = importer("octmnist")
    path = medmnist(tmp_path / "octmnist.npz", entry)  # type: ignore[arg-type]
    with np.load(path) as arrays, zipfile.ZipFile(tmp_path / "more.npz", "w") as archive:
        for key in arrays.files:
            buffer = io.BytesIO()
            np.save(buffer, arrays[key])
            content = buffer.getvalue().replace(b"(5, ", b"(9999999999, ", 1)
            archive.writestr(f"{key}.npy", content.replace(b" " * 9 + b"\n", b"\n", 1))
    with pytest.raises(DataError, match=r"more\.npz is not a readable npz file"):
        entry.read(tmp_path / "more.npz", split="train")


def test_json_of_one_object_is_wanted_where_one_is_read(tmp_path: Path) -> None:
    from fedmed.data.importers.rows import json_entries

    path = tmp_path / "a.json"
    path.write_text(json.dumps([1]))
    with pytest.raises(DataError, match="holds a JSON list, expected an object of rows"):
        list(json_entries(path))
    path.write_text('{"a": {"x": 1}, "b": 3}')
    with pytest.raises(DataError, match="row 2 is a JSON int, expected an object"):
        list(json_entries(path))


def test_images_that_are_kept_for_the_next_rows_have_a_bound_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty-four radiographs would be gigabytes."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(encode_png(noise + np.uint8(number)))
    monkeypatch.setattr(folder_images, "_KEPT_BYTES", 200_000)
    images = folder_images.FolderImages(tmp_path)
    tracemalloc.start()
    assert {images.load(f"{number}.png")[1] for number in range(12)} == {""}
    assert tracemalloc.get_traced_memory()[0] < 400_000
    tracemalloc.stop()
    assert images.load("11.png")[0] == (tmp_path / "11.png").read_bytes()
