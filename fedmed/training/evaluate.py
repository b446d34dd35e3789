"""Answers and scores of a model. In: examples with pictures; out: texts, and how right they are. Draws nothing.

    >>> scores, answers = evaluate(base.model, base.processor, manifest, batch_size=128, max_new_tokens=24)
    >>> scores.accuracy
    0.63

Greedy decoding with a key-value cache, prompts left padded, stopped at the end token. For public test sets: scores of
private records must not leave a site as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from PIL.Image import Image
from torch import nn
from transformers import GenerationConfig, ProcessorMixin

from fedmed.data.collate import IGNORE, MAX_LENGTH, Collator
from fedmed.data.manifest import Manifest
from fedmed.data.schema import Example
from fedmed.metrics.scores import Scores, score
from fedmed.models.base import BaseModel


def evaluate(
    model: nn.Module, processor: ProcessorMixin, manifest: Manifest, *, batch_size: int, max_new_tokens: int
) -> tuple[Scores, list[str]]:
    """Scores of the model on every example of the manifest, and its answers in the same order.

    Args:
        model: plain, or with its adapter; used on its device and in its dtype.
        batch_size: examples a forward pass.
        max_new_tokens: at most so many tokens an answer.
    """
    answers: list[str] = []
    for part in _parts(manifest.examples, batch_size):
        images = [manifest.images(example) for example in part]
        answers += generate_answers(
            model, processor, part, images, batch_size=batch_size, max_new_tokens=max_new_tokens
        )
    return score(answers, manifest.examples), answers


def generate_answers(
    base_or_model: BaseModel | nn.Module,
    processor: ProcessorMixin,
    examples: Sequence[Example],
    images: Sequence[Sequence[Image]],
    *,
    batch_size: int,
    max_new_tokens: int,
    max_length: int = MAX_LENGTH,
) -> list[str]:
    """The model's greedy answer to each example's question about its pictures; the examples' answers are not read.

    Raises TooLongError when a prompt has more than `max_length` tokens.
    """
    model = base_or_model.model if isinstance(base_or_model, BaseModel) else base_or_model
    collator, tokenizer = Collator(processor, max_length), processor.tokenizer
    settings = _greedy(model, tokenizer, max_new_tokens)
    device, dtype = _placement(model)
    generator = cast(Any, model)  # PreTrainedModel and PeftModel both generate; nn.Module does not say so
    model.eval()
    answers: list[str] = []
    for start in range(0, len(examples), batch_size):
        part = slice(start, start + batch_size)
        inputs = collator.prompt_batch(examples[part], images[part])
        placed = {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in inputs.items()}
        with torch.inference_mode():
            tokens: torch.Tensor = generator.generate(**placed, generation_config=settings)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


def likeliest_choices(base: BaseModel, examples: Sequence[Example], images: Sequence[Sequence[Image]]) -> list[int]:
    """For each multiple-choice example the place of the choice whose text the model finds likeliest, by mean log-probability of
    its tokens and the end token; of equally likely ones the first. What is the answer is not read."""
    model, collator = base.model, Collator(base.processor)
    device, dtype = _placement(model)
    model.eval()
    found = []
    for example, pictures in zip(examples, images, strict=True):
        asked = [replace(example, answer=choice) for choice in example.choices]
        batch = collator.train_batch(asked, [pictures] * len(asked))
        placed = {
            key: value.to(device, dtype if value.is_floating_point() else None) for key, value in batch.inputs.items()
        }
        with torch.inference_mode():
            logits = cast(Any, model)(**placed).logits[:, :-1].float()
        labels = batch.labels[:, 1:].to(device)
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORE
        )
        found.append(int((losses.sum(1) / (labels != IGNORE).sum(1)).argmin()))
    return found


def _greedy(model: nn.Module, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    """Greedy settings with the end tokens of both the checkpoint and its tokenizer, and the tokens that it never answers."""
    settings = getattr(model, "generation_config", None)
    own = getattr(settings, "eos_token_id", None)
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends) if pad is None else pad,
        suppress_tokens=getattr(settings, "suppress_tokens", None),
    )


def _placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    first = next(model.parameters())
    return first.device, first.dtype


def _parts(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]
