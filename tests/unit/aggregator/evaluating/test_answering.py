"""What a model is shown under each control: nothing but the question's own images changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers_evaluation import image, made_set, pixels, question
from PIL import Image

from aggregator.evaluating.answering import GREY, Asker
from aggregator.evaluating.few_shot import with_shots
from fedmed.data.collate import Collator
from fedmed.data.schema import Example
from fedmed.errors import ModelError
from fedmed.models.base import BaseModel

Shown = list[tuple[Example, list[Image.Image]]]
TEST = made_set(
    [
        question("a", "yes", images=[image(1)]),
        question("b", "no", images=[image(2)]),
        question("c", "no", images=[image(3), image(4)]),
        question("d", "yes"),
    ],
    [question("x", "no", images=[image(9)])],
)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Whatever a model would be shown; its answers are how many images there were."""
    seen: Shown = []

    def generate(
        base: Any, processor: Any, examples: Sequence[Example], images: Sequence[list[Image.Image]], **_: Any
    ) -> list[str]:
        seen.extend(zip(examples, images, strict=True))
        return [str(len(own)) for own in images]

    monkeypatch.setattr("fedmed.training.evaluate.generate_answers", generate)
    return seen


def asker(shots: int = 0) -> Asker:
    return Asker(TEST, with_shots(TEST, shots, 0), batch_size=3, max_new_tokens=4)


def same(picture: Image.Image, seed: int) -> bool:
    return bool(np.array_equal(np.asarray(picture), pixels(seed)))


def test_the_real_run_shows_the_own_images(shown: Shown, tiny_base: BaseModel) -> None:
    assert asker().answers(tiny_base) == ["1", "1", "2", "0"]
    assert same(shown[0][1][0], 1) and same(shown[2][1][1], 4)


def test_blank_images_are_grey_and_of_the_same_size(shown: Shown, tiny_base: BaseModel) -> None:
    assert asker().control(tiny_base, "blank", 0) == ["1", "1", "2", None]
    assert all(picture.size == (16, 12) for _, own in shown for picture in own)
    assert {picture.getpixel((x, 0)) for _, own in shown for picture in own for x in range(16)} == {GREY}
    assert [example.question for example, _ in shown] == ["Is there an effusion?"] * 3


def test_shuffled_images_are_another_patients(shown: Shown, tiny_base: BaseModel) -> None:
    assert asker().control(tiny_base, "shuffled", 0) == ["1", "1", None, None]  # alone with two; without any
    assert same(shown[0][1][0], 2) and same(shown[1][1][0], 1)


def test_text_only_shows_none(shown: Shown, tiny_base: BaseModel) -> None:
    assert asker(1).control(tiny_base, "text_only", 0) == ["0", "0", "0", None]
    assert all(not example.images and example.history for example, _ in shown)


def test_examples_before_the_question_keep_their_images(shown: Shown, tiny_base: BaseModel) -> None:
    assert asker(1).control(tiny_base, "blank", 0) == ["2", "2", "3", None]
    assert all(same(own[0], 9) and not same(own[-1], 9) for _, own in shown)
    assert shown[0][1][-1].getpixel((0, 0)) == GREY


def test_the_majority_answer_asks_nobody(shown: Shown, tiny_base: BaseModel) -> None:
    assert asker().control(tiny_base, "majority", 0) in (["yes"] * 4, ["no"] * 4)
    assert not shown


def test_the_prompt_is_as_the_models_template_writes_it(tiny_base: BaseModel) -> None:
    assert asker(1).prompt(tiny_base) == (
        "<s><|user|><image>Is there an effusion?<|assistant|>no</s><|user|><image>Is there an effusion?<|assistant|>"
    )


def test_a_model_that_takes_no_prompt_without_image_says_so(
    monkeypatch: pytest.MonkeyPatch, tiny_base: BaseModel
) -> None:
    def generate(*_: Any, **__: Any) -> list[str]:
        raise ValueError("expected pixel_values\nand more")

    monkeypatch.setattr("fedmed.training.evaluate.generate_answers", generate)
    with pytest.raises(ModelError, match=r"prompts without an image: expected pixel_values$"):
        asker().control(tiny_base, "text_only", 0)


def test_several_images_in_one_prompt_go_through_a_real_model(tiny_base: BaseModel) -> None:
    found = asker(1)
    assert len(found.answers(tiny_base)) == 4
    assert found.answers(tiny_base) == found.answers(tiny_base)


def test_the_likeliest_choice_is_the_one_of_the_smallest_loss(tiny_base: BaseModel) -> None:
    choices = ("yes", "left right", "The heart is normal.")
    asked = question("a", "yes", task="choice", images=[image(1)], choices=choices)
    losses = []
    for choice in choices:  # one at a time, by the model's own loss, which is a mean over the answer's tokens
        batch = Collator(tiny_base.processor).train_batch([replace(asked, answer=choice)], [TEST.images(asked)])
        moved = batch.to(tiny_base.model.device)
        losses.append(float(tiny_base.model(**moved.inputs, labels=moved.labels).loss))
    likeliest = losses.index(min(losses))
    for place, choice in enumerate(choices):
        example = replace(asked, answer=choice)
        only = Asker(made_set([example]), [example], batch_size=1, max_new_tokens=1)
        assert only.likeliest_right(tiny_base) == {0: float(place == likeliest)}
    assert Asker(TEST, TEST.examples, batch_size=1, max_new_tokens=1).likeliest_right(tiny_base) == {}
