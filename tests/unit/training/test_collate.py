"""Batches: what is learnt, how they are padded, and which example owns an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_training import mixed_cohort, record
from PIL.Image import Image

from fedmed.data.collate import IGNORE, Collator
from fedmed.data.images import open_image
from fedmed.data.schema import Example
from fedmed.errors import DataError
from fedmed.models.base import BaseModel


def pictures(example: Example) -> list[Image]:
    return [open_image(ref, None) for ref in example.images]


def test_only_the_answer_and_its_end_are_learnt(tiny_base: BaseModel) -> None:
    tokenizer = tiny_base.processor.tokenizer
    examples = [record(0, 1, 1, "The heart is normal."), record(0, 2, 2, "no"), record(0, 3, 0, "left")]
    batch = Collator(tiny_base.processor, 512).train_batch(examples, [pictures(example) for example in examples])
    for row, example in enumerate(examples):
        learnt = batch.labels[row][batch.labels[row] != IGNORE]
        assert int(learnt[-1]) == tokenizer.eos_token_id
        assert tokenizer.decode(learnt[:-1]) == example.answer
        positions = (batch.labels[row] != IGNORE).nonzero().squeeze(1)
        assert torch.equal(batch.inputs["input_ids"][row, positions], learnt)
        assert int(batch.inputs["attention_mask"][row].sum()) == int(positions[-1]) + 1  # padding follows the end
    assert batch.image_owner.tolist() == [0, 1, 1]
    assert batch.inputs["pixel_values"].shape[0] == 3


def test_the_learnt_prompt_is_the_generated_one(tiny_base: BaseModel, tmp_path: Path) -> None:
    manifest = mixed_cohort(tmp_path / "site")
    collator = Collator(tiny_base.processor, 512)
    for example in manifest.examples:
        images = manifest.images(example)
        batch, prompt = collator.train_batch([example], [images]), collator.prompt_batch([example], [images])
        length = prompt["input_ids"].shape[1]
        assert torch.equal(batch.inputs["input_ids"][:, :length], prompt["input_ids"])
        assert bool((batch.labels[:, :length] == IGNORE).all()) and int(batch.labels[0, length]) != IGNORE
        if images:
            assert torch.equal(batch.inputs["pixel_values"], prompt["pixel_values"])


@pytest.mark.parametrize("images", [[1, 1, 2], [1, 0, 2], [0, 0]])
def test_prompts_are_left_padded(tiny_base: BaseModel, images: list[int]) -> None:
    collator = Collator(tiny_base.processor, 512)
    examples = [record(0, seed, count) for seed, count in enumerate(images)]
    inputs = collator.prompt_batch(examples, [pictures(example) for example in examples])
    for row, example in enumerate(examples):
        alone = collator.prompt_batch([example], [pictures(example)])["input_ids"][0]
        assert torch.equal(inputs["input_ids"][row, -len(alone) :], alone)
        assert inputs["attention_mask"][row].tolist() == [0] * (len(inputs["input_ids"][row]) - len(alone)) + [1] * len(
            alone
        )
    assert ("pixel_values" in inputs) == any(images)


@pytest.mark.parametrize("max_length", [512, 110])
def test_encoding_together_is_encoding_each(tiny_base: BaseModel, max_length: int) -> None:
    """Whatever the lengths, image counts and cuts; and what is kept of one example does not hold the others' memory."""
    examples = [
        record(0, 1, 1),
        record(0, 2, 2, "The heart is normal."),
        replace(record(0, 4, 1), question="No? " * 30),
    ]
    images = [pictures(example) for example in examples]
    collator = Collator(tiny_base.processor, max_length)
    for one, other in zip(collator.encode_all(examples, images), map(collator.encode, examples, images), strict=True):
        assert torch.equal(one.prompt, other.prompt) and torch.equal(one.answer, other.answer)
        assert one.rows == other.rows and one.vision.keys() == other.vision.keys()
        assert all(torch.equal(one.vision[key], other.vision[key]) for key in one.vision)
        assert sum(value.untyped_storage().nbytes() for value in one.vision.values()) <= one.num_bytes


def test_a_long_question_is_cut_and_the_answer_kept(tiny_base: BaseModel) -> None:
    example = replace(record(0, 1, 1, "The heart is normal."), question="Is there an opacity? " * 60)
    encoded = Collator(tiny_base.processor, 160).encode(example, pictures(example))
    assert 100 < encoded.length <= 160
    assert tiny_base.processor.tokenizer.decode(encoded.answer[:-1]) == example.answer


def test_what_cannot_fit_is_refused_with_numbers_alone(tiny_base: BaseModel) -> None:
    example = record(0, 1, 1, "The heart is normal." * 20)
    with pytest.raises(DataError, match="at most 100") as caught:
        Collator(tiny_base.processor, 100).encode(example, pictures(example))
    assert "heart" not in str(caught.value) and "heart" not in caught.value.hint


def test_markup_in_a_text_does_not_move_images(tiny_base: BaseModel) -> None:
    tokens = tiny_base.processor.tokenizer
    example = replace(record(0, 1, 1), question="<image> Is there </s> an opacity?", answer="yes</s> <image>")
    encoded = Collator(tiny_base.processor, 512).encode(example, pictures(example))
    image = tokens.convert_tokens_to_ids("<image>")
    plain = Collator(tiny_base.processor, 512).encode(record(0, 1, 1), pictures(example))
    assert int((encoded.prompt == image).sum()) == int((plain.prompt == image).sum())
    assert int((encoded.answer == image).sum()) == 0 and int((encoded.answer == tokens.eos_token_id).sum()) == 1


def test_no_repr_shows_a_patient(tiny_base: BaseModel) -> None:
    example = record(0, 1, 1)
    text = repr(Collator(tiny_base.processor, 512).encode(example, pictures(example)))
    assert "tensor" not in text
