"""PubMedQA and MedQA: text alone, in the forms that circulate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers_public_sets import medqa, medqa_row, pubmed_row, pubmedqa

from fedmed.data.importers import importer
from fedmed.data.importers.sifting import ELSEWHERE
from fedmed.errors import DataError

SPLITS = ("train", "val", "test")


def test_pubmedqa_asks_for_the_decision_or_the_conclusion(tmp_path: Path) -> None:
    folder = pubmedqa(tmp_path / "data")
    decided = importer("pubmedqa").read(tmp_path, split="test").examples
    assert [item.patient for item in decided] == ["100", "101"]
    assert decided[0].question == (
        "Context: It was tried. Few were better. Question: Does it help? Answer yes, no or maybe."
    )
    assert (decided[0].answer, decided[0].choices, decided[0].images) == ("maybe", ("yes", "no", "maybe"), ())
    assert (decided[0].task, decided[0].answer_type, dict(decided[0].attributes)) == (
        "choice",
        "closed",
        {"year": "2011"},
    )
    long = importer("pubmedqa_long").read(folder, split="test").examples
    assert (long[0].answer, long[0].answer_type, long[0].choices) == ("It may help some.", "open", ())


def test_pubmedqa_is_split_by_the_ground_truth_file_or_by_hash(tmp_path: Path) -> None:
    folder = pubmedqa(tmp_path)
    entry = importer("pubmedqa")
    official = {split: {item.patient for item in entry.read(folder, split=split).examples} for split in SPLITS}
    assert official["test"] == {"100", "101"}
    assert sum(map(len, official.values())) == len(set.union(*official.values())) == 40
    assert official["val"]
    (folder / "test_ground_truth.json").unlink()
    with pytest.raises(DataError, match=r"has no test_ground_truth\.json") as caught:
        entry.read(folder, split="train")
    assert "image" in caught.value.hint
    by_hash = {
        split: {item.patient for item in entry.read(folder, split=split, split_rule="image").examples}
        for split in SPLITS
    }
    assert sum(map(len, by_hash.values())) == len(set.union(*by_hash.values())) == 40
    assert all(by_hash.values())


def test_pubmedqa_survives_the_dirt(tmp_path: Path) -> None:
    rows = {
        "1": pubmed_row(final_decision="YES "),
        "2": pubmed_row(final_decision="perhaps"),
        "3": pubmed_row(final_decision=""),
        "4": pubmed_row(QUESTION=" "),
        "5": pubmed_row(CONTEXTS=[], YEAR=None),
        "6": pubmed_row(QUESTION="Does \ud800 help?"),
    }
    imported = importer("pubmedqa").read(pubmedqa(tmp_path, rows, test=rows), split="test")
    assert imported.rows_read == 6 == len(imported.examples) + sum(imported.quarantined.values())
    assert imported.quarantined["decision is none of yes, no and maybe"] == 1
    assert imported.quarantined["question or answer is empty"] == 2
    assert [item.answer for item in imported.examples][:2] == ["yes", "maybe"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (pubmed_row(CONTEXTS="x"), r"ori_pqal\.json row 1: CONTEXTS is str, expected a list of texts"),
        (pubmed_row(CONTEXTS=[1]), r"ori_pqal\.json row 1: CONTEXTS is list, expected a list of texts"),
        ({"QUESTION": "q"}, r"ori_pqal\.json row 1: CONTEXTS is missing"),
        (pubmed_row(final_decision=None), "row 1: final_decision is NoneType, expected str"),
        ([], r"ori_pqal\.json row 1 is a JSON list, expected an object"),
    ],
)
def test_pubmedqa_names_row_and_field(tmp_path: Path, row: Any, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        importer("pubmedqa").read(pubmedqa(tmp_path, {"1": row}), split="train")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"answer": "B"},
        {"answer_idx": "b"},
        {"options": ["drug A", "drug B", "drug C"]},
        {"options": [{"key": letter, "value": f"drug {letter}"} for letter in "BAC"]},
    ],
)
def test_medqa_takes_its_forms(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = medqa(tmp_path, test=[medqa_row(1, **changes)])
    (example,) = importer("medqa").read(folder, split="test").examples
    assert example.answer == "drug B"
    assert example.choices[:2] == ("drug A", "drug B")
    assert example.question.startswith("Which of the drugs of case 1 is right? Choices: A: drug A B: drug B C: drug C")
    assert dict(example.attributes) == {"label": "B", "step": "step1"}


def test_medqa_takes_letters_beside_the_question(tmp_path: Path) -> None:
    row = {"question": "Which?", "A": "one", "B": "two", "answer": "two"}
    (example,) = importer("medqa").read(medqa(tmp_path, test=[row]), split="test").examples
    assert (example.answer, example.choices, dict(example.attributes)) == ("two", ("one", "two"), {"label": "B"})


def test_medqa_survives_the_dirt_and_names_what_is_no_form(tmp_path: Path) -> None:
    rows = [medqa_row(1), medqa_row(1, question=" "), medqa_row(2, answer="drug A"), medqa_row(3, options=["x", "x"])]
    imported = importer("medqa").read(medqa(tmp_path, test=rows), split="test")
    assert (imported.rows_read, len(imported.examples)) == (4, 1)
    assert sum(imported.quarantined.values()) == 3
    wrong: list[Any] = [{"A": "x", "C": "y"}, {"A": "x"}, ["x", 2], "x", None, [{"key": 1, "value": "x"}] * 2]
    for place, options in enumerate(wrong):
        folder = medqa(tmp_path / str(place), test=[medqa_row(1, options=options)])
        with pytest.raises(DataError, match=r"test\.jsonl row 1: options is \w+, expected texts under A, B"):
            importer("medqa").read(folder, split="test")
    row = {key: value for key, value in medqa_row(1).items() if not key.startswith("answer")}
    with pytest.raises(DataError, match="row 1: answer is missing, expected str"):
        importer("medqa").read(medqa(tmp_path / "none", test=[row]), split="test")


def test_medqa_of_four_choices_has_no_dev_file_and_a_question_is_one_patient(tmp_path: Path) -> None:
    twice = [medqa_row(number) for number in range(40)]
    folder = medqa(tmp_path, four_train=twice, four_test=[medqa_row(0, question=twice[0]["question"].upper())])
    parts = {split: importer("medqa_4").read(folder, split=split, split_rule="image") for split in SPLITS}
    questions = [{item.patient for item in part.examples} for part in parts.values()]
    assert all(questions)
    assert not questions[0] & questions[1] | questions[0] & questions[2] | questions[1] & questions[2]
    assert sum(part.quarantined.get(ELSEWHERE, 0) for part in parts.values()) == 1
    assert sum(part.rows_read for part in parts.values()) == 41
    below = tmp_path / "data_clean" / "questions" / "US"
    below.mkdir(parents=True)
    (folder / "4_options").rename(below / "4_options")
    assert importer("medqa_4").read(folder, split="test").rows_read == 1
