"""What a data set's name means, what it shares with its train split, and examples before a question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers_evaluation import image, made_set, question, stored_anew

from aggregator.evaluating.dataset import load_test_set
from aggregator.evaluating.few_shot import with_shots
from aggregator.evaluating.overlap import overlap
from fedmed.data.conversation import Conversation
from fedmed.data.manifest import write_manifest
from fedmed.data.schema import IMAGE_MARK, Exchange, marks_fit
from fedmed.errors import DataError


def test_phantoms_are_the_same_for_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.evaluating.dataset.PHANTOMS", 12)
    first, again = (load_test_set("phantom", limit=10) for _ in range(2))
    assert first.sha256() == again.sha256() != load_test_set("phantom", limit=10, seed=1).sha256()
    assert len(first.examples) == 10 and first.train and not {e.patient for e in first.train} & set(first.patients)
    assert any("first 10 of" in note for note in first.notes)


def test_a_manifest_folder_has_its_splits(tmp_path: Path) -> None:
    examples = [question("a", "yes", images=[image(1)]), replace(question("b", "no", images=[image(2)]), split="train")]
    write_manifest(tmp_path / "site", examples)
    found = load_test_set(str(tmp_path / "site"))
    assert (found.name, len(found.examples), len(found.train or ())) == ("site", 1, 1)
    assert found.images(found.examples[0])[0].size == (16, 12)
    assert overlap(found).in_train == 0
    learnt = overlap(load_test_set(str(tmp_path / "site"), split="train"))
    assert (learnt.images, learnt.in_train, learnt.seen) == (1, 1, ("yes",))
    write_manifest(tmp_path / "alone", examples[:1])
    assert load_test_set(str(tmp_path / "alone")).train is None
    with pytest.raises(DataError, match="no example of the split val: it has 1 of train, 1 of test"):
        load_test_set(str(tmp_path / "site"), split="val")


@pytest.mark.parametrize(
    ("dataset", "split", "said"),
    [
        ("nosuch", "test", "no data set 'nosuch': expected .*phantom.*, or a folder that holds manifest.jsonl"),
        ("vqa_rad:nowhere", "test", "nowhere does not exist"),
        ("phantom", "final", "split 'final': expected one of train, val, test"),
    ],
)
def test_a_wrong_name_says_what_there_is(dataset: str, split: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_test_set(dataset, split=split)


def test_the_same_picture_stored_anew_is_the_same() -> None:
    examples = [question("a", "yes", images=[image(1)]), question("b", "no", images=[image(2)]), question("c", "no")]
    found = overlap(made_set(examples, train=[question("x", "yes", images=[stored_anew(1), image(3)])]))
    assert (found.images, found.in_train, found.items, found.seen) == (2, 1, 1, ("yes", "no", ""))
    assert "1 of the 2 test images are in the train split" in found.sentence()


def test_an_unknown_train_split_is_unknown_and_not_zero() -> None:
    found = overlap(made_set([question("a", "yes", images=[image(1)])]))
    assert (found.in_train, found.items, found.seen) == (None, None, ("",)) and "unknown" in found.sentence()
    assert "None of the 1 test images" in overlap(made_set([question("a", "yes", images=[image(1)])], [])).sentence()


POOL = [
    question("a", "yes", images=[image(1)]),  # the question's own patient
    question("x", "yes", images=[stored_anew(1)]),  # the question's own image
    question("y", "report", "open", task="report", images=[image(5)]),  # another task
    question("z", "no", images=[image(6)]),
    question("w", "yes", images=[image(7), image(8)]),
]


def test_examples_before_a_question_are_others() -> None:
    test = made_set([question("a", "yes", images=[image(1)]), question("b", "no", images=[image(2)])], POOL)
    for seed in range(10):
        first = with_shots(test, 2, seed)[0]
        assert sorted(said.answer for said in first.history) == ["no", "yes"]
        assert set(first.images[:-1]) == {image(6), image(7), image(8)} and first.images[-1] == image(1)
        assert first.question == f"{IMAGE_MARK} Is there an effusion?" and marks_fit(first)
        assert first.answer == "yes" and first.patient == "a"
    assert with_shots(test, 2, 0) == with_shots(test, 2, 0)
    assert len({with_shots(test, 2, seed)[1].history for seed in range(20)}) > 1


def test_every_image_stands_at_its_mark_of_the_prompt() -> None:
    test = made_set([question("a", "yes", images=[image(1)])], POOL)
    asked = with_shots(test, 2, 0)[0]
    messages = Conversation.of(asked, len(asked.images), str.strip).messages(None)
    shown = [sum(part["type"] == "image" for part in message["content"]) for message in messages]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert sorted(shown[:4]) == [0, 0, 1, 2] and shown[4] == 1


def test_an_example_with_a_history_of_its_own_keeps_it() -> None:
    asked = replace(question("a", "yes", images=[image(1)]), history=(Exchange("What is it?", "a chest"),))
    found = with_shots(made_set([asked], POOL), 1, 0)[0]
    assert len(found.history) == 2 and found.history[1] == Exchange(f"{IMAGE_MARK} What is it?", "a chest")
    assert found.question == "Is there an effusion?"


def test_too_few_examples_are_told() -> None:
    test = made_set([question("a", "yes", images=[image(1)])], POOL)
    assert with_shots(test, 0, 0) == list(test.examples)
    with pytest.raises(DataError, match="2 examples of made's train split may stand before question 1, expected 3"):
        with_shots(test, 3, 0)
    with pytest.raises(DataError, match="no train split to draw 1 examples from"):
        with_shots(made_set(test.examples), 1, 0)
