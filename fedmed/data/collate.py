"""Examples and pictures to tensors: through the model's own processor and chat template.

    Example + pictures -> encode (once) -> Encoded -> training batch (right padded) or prompt batch (left padded)

    >>> collator = Collator(base.processor, max_length=512)
    >>> batch = collator.train_batch([example], [[picture]])       # labels: -100 but for the answer and its end token

Shapes: B examples, L tokens, R rows of the vision tower's leading axis. A row is an image (LLaVA), a sub-image
(Idefics3) or a patch (Qwen2.5-VL); `image_owner` [R] says which example of the batch it belongs to.

| case                                       | result                                                                   |
| ------------------------------------------ | ------------------------------------------------------------------------ |
| answer                                     | tokenised after the prompt's own tokens, exactly where generation starts |
| answer without an end token in the template| the tokenizer's end token is added, and learnt                           |
| history                                    | earlier turns of the same conversation; only the answer is learnt        |
| as many image marks as images              | each image at its mark; else the marks are taken out, all images first   |
| special tokens inside a question or answer | taken out: they are markup, and would move images                        |
| longer than max_length                     | words are cut from the end of the question (never an image mark), then   |
|                                            | the oldest exchange without an image goes; never from the answer         |
| too long even then                         | TooLongError with the numbers                                            |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import ProcessorMixin

from fedmed.data.conversation import Conversation
from fedmed.data.schema import Example
from fedmed.errors import DataError, ModelError

IGNORE = -100
MAX_LENGTH = 2048
_TOO_LONG = "take a base model with a longer context, fewer images a record, or shorter texts"


class TooLongError(DataError):
    """A record does not fit the model. Whoever computes on patients leaves it out: a task can choose what fits, so that a
    failure would tell whose records there are."""


@dataclass(frozen=True)
class Batch:
    """What a model takes. `labels` [B, L] hold -100 but on answer tokens; `image_owner` [R] is described above."""

    inputs: dict[str, Tensor]
    labels: Tensor
    image_owner: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        moved = {key: value.to(device) for key, value in self.inputs.items()}
        return Batch(moved, self.labels.to(device), self.image_owner.to(device))


@dataclass(frozen=True)
class Encoded:
    """One example as tensors, before padding.

    Attributes:
        prompt, answer: token ids [L]; the answer ends in the end token.
        token_extras: further values per prompt token (such as token types), [L] each.
        vision: the processor's image tensors, of this example alone.
        rows: length of the vision tower's leading axis for this example.
    """

    prompt: Tensor = field(repr=False)
    answer: Tensor = field(repr=False)
    token_extras: Mapping[str, Tensor] = field(repr=False)
    vision: Mapping[str, Tensor] = field(repr=False)
    rows: int

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def num_bytes(self) -> int:
        """Memory that keeping it takes."""
        tensors = [self.prompt, self.answer, *self.token_extras.values(), *self.vision.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Collator:
    """Makes batches for one processor.

    Args:
        processor: of the base model, with a tokenizer, an image processor and a chat template.
        max_length: tokens of prompt, images and answer together.
    """

    def __init__(self, processor: ProcessorMixin, max_length: int = MAX_LENGTH) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._max_length = max_length
        self._answers: dict[tuple[Conversation, str], Tensor] = {}
        if self._tokenizer.eos_token_id is None:
            raise ModelError("the base model's tokenizer has no end token, expected one to stop answers at")
        pad = self._tokenizer.pad_token_id
        self._pad: int = self._tokenizer.eos_token_id if pad is None else pad

    def encode(self, example: Example, images: Sequence[Image]) -> Encoded:
        """One example's tokens and image tensors. Raises TooLongError when it does not fit `max_length`."""
        said = self._conversation(example, images)
        answer = self._encode_answer(said, example.answer)
        prompt = self._encode_prompt(said, images)
        while (excess := prompt["input_ids"].shape[1] + len(answer) - self._max_length) > 0:
            shorter = said.shorter(excess, self._num_tokens)
            if shorter is None:
                raise TooLongError(
                    f"a record needs {self._max_length + excess} tokens without its question, expected at most "
                    f"{self._max_length}",
                    _TOO_LONG,
                )
            said = shorter
            prompt = self._encode_prompt(said, images)
        return _split(prompt, answer)

    def encode_all(self, examples: Sequence[Example], images: Sequence[Sequence[Image]]) -> list[Encoded]:
        """As `encode` of each, with one call of the processor for all where it lays images out one a row."""
        together = self._encode_together(examples, images) if len(examples) > 1 and all(images) else None
        return together or [self.encode(example, own) for example, own in zip(examples, images, strict=True)]

    def train_batch(self, examples: Sequence[Example], images: Sequence[Sequence[Image]]) -> Batch:
        """Examples with their pictures as one right-padded batch."""
        return self.join(self.encode_all(examples, images))

    def prompt_batch(self, examples: Sequence[Example], images: Sequence[Sequence[Image]]) -> dict[str, Tensor]:
        """Prompts alone, left padded, as `generate` takes them. Raises TooLongError when one does not fit."""
        with_images = sum(bool(own) for own in images)
        if with_images not in (0, len(examples)):  # not every processor takes examples without images among others
            return self.join_prompts(self.encode_all(examples, images))
        texts = self._render_prompts(examples, images)
        prompts = self._process(texts, images if with_images else [])
        if (length := prompts["input_ids"].shape[1]) > self._max_length:
            raise TooLongError(f"a prompt needs {length} tokens, expected at most {self._max_length}", _TOO_LONG)
        return prompts

    def join(self, items: Sequence[Encoded]) -> Batch:
        """Encoded examples as one right-padded training batch."""
        texts = [torch.cat([item.prompt, item.answer]) for item in items]
        length = max(len(text) for text in texts)
        labels = torch.full((len(items), length), IGNORE)
        for row, item in enumerate(items):
            labels[row, len(item.prompt) : item.length] = item.answer
        rows = torch.tensor([item.rows for item in items])
        owner = torch.repeat_interleave(torch.arange(len(items)), rows)
        return Batch(self._join_inputs(items, texts, left=False), labels, owner)

    def join_prompts(self, items: Sequence[Encoded]) -> dict[str, Tensor]:
        """Encoded examples' prompts, left padded."""
        return self._join_inputs(items, [item.prompt for item in items], left=True)

    def _join_inputs(self, items: Sequence[Encoded], texts: Sequence[Tensor], *, left: bool) -> dict[str, Tensor]:
        length = max(len(text) for text in texts)
        inputs = {
            "input_ids": _pad(texts, length, self._pad, left=left),
            "attention_mask": _pad([torch.ones_like(text) for text in texts], length, 0, left=left),
        }
        for key in items[0].token_extras:
            extras = [_extend(item.token_extras[key], len(text)) for item, text in zip(items, texts, strict=True)]
            inputs[key] = _pad(extras, length, 0, left=left)
        return inputs | _join_vision([item.vision for item in items])

    def _encode_together(self, examples: Sequence[Example], images: Sequence[Sequence[Image]]) -> list[Encoded] | None:
        """None where the result cannot be taken apart by example, or one of them has to be shortened."""
        texts = self._render_prompts(examples, images)
        prompts = self._process(texts, images)
        mask, pixels = prompts.pop("attention_mask").bool(), prompts.get("pixel_values")
        rows = [len(own) for own in images]
        if pixels is None or pixels.dim() != 4 or len(pixels) != sum(rows):
            return None
        parts = {
            key: [line[keep].unsqueeze(0) for line, keep in zip(value, mask, strict=True)]
            if value.shape == mask.shape
            else [part.clone() for part in value.split(rows)]
            for key, value in prompts.items()
        }
        answers = [
            self._encode_answer(self._conversation(example, own), example.answer)
            for example, own in zip(examples, images, strict=True)
        ]
        alone = [{key: values[index] for key, values in parts.items()} for index in range(len(examples))]
        encoded = [_split(prompt, answer) for prompt, answer in zip(alone, answers, strict=True)]
        return encoded if max(item.length for item in encoded) <= self._max_length else None

    def _conversation(self, example: Example, images: Sequence[Image]) -> Conversation:
        return Conversation.of(example, len(images), self._clean)

    def _num_tokens(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_prompt(self, said: Conversation, images: Sequence[Image]) -> dict[str, Tensor]:
        return self._process([self._render(said, None)], [images] if images else [])

    def _process(self, texts: Sequence[str], images: Sequence[Sequence[Image]]) -> dict[str, Tensor]:
        # A template that writes the start token itself must not get a second one from the tokenizer.
        start = self._tokenizer.bos_token
        encoded = self._processor(
            text=list(texts),
            images=[list(own) for own in images] or None,
            add_special_tokens=not (start and texts[0].startswith(start)),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return dict(encoded)

    def _encode_answer(self, said: Conversation, answer: str) -> Tensor:
        """Tokens of what the template writes after the prompt, up to and with the end token."""
        key = (said, self._clean(answer))
        if key not in self._answers:  # closed questions repeat, and rendering templates takes a third of encoding
            self._answers[key] = self._tokenize_answer(*key)
        return self._answers[key]

    def _tokenize_answer(self, said: Conversation, answer: str) -> Tensor:
        prompt, whole = self._render(said, None), self._render(said, answer)
        text = whole.removeprefix(prompt) if whole.startswith(prompt) else answer
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        end: int = self._tokenizer.eos_token_id
        return torch.tensor([*ids[: ids.index(end)], end] if end in ids else [*ids, end])

    def _render_prompts(self, examples: Sequence[Example], images: Sequence[Sequence[Image]]) -> list[str]:
        pairs = zip(examples, images, strict=True)
        return [self._render(self._conversation(example, own), None) for example, own in pairs]

    def _render(self, said: Conversation, answer: str | None) -> str:
        text: str = self._processor.apply_chat_template(
            said.messages(answer), tokenize=False, add_generation_prompt=answer is None
        )
        return text

    def _clean(self, text: str) -> str:
        for token in self._tokenizer.all_special_tokens:
            text = text.replace(token, " ")
        return text.strip()


def _split(prompt: Mapping[str, Tensor], answer: Tensor) -> Encoded:
    """Sorts the processor's output into tokens, values per token, and image tensors."""
    ids = prompt["input_ids"]
    rest = {key: value for key, value in prompt.items() if key not in ("input_ids", "attention_mask")}
    extras = {key: value[0] for key, value in rest.items() if value.shape == ids.shape}
    vision = {key: value for key, value in rest.items() if key not in extras}
    pixels = vision.get("pixel_values")
    rows = 0 if pixels is None else pixels.shape[1] if pixels.dim() == 5 else pixels.shape[0]
    return Encoded(ids[0], answer, extras, vision, rows)


def _join_vision(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Image tensors of several examples: [R, ...] joined along the rows, or [1, R, ...] stacked with empty rows.

    The second layout (Idefics3) has five axes in `pixel_values`; its models drop rows that are all zero.
    """
    present = [item for item in items if item]
    if not present:
        return {}
    if present[0]["pixel_values"].dim() != 5:
        return {key: torch.cat([item[key] for item in present]) for key in present[0]}
    return {key: _stack_rows([item.get(key) for item in items]) for key in present[0]}


def _stack_rows(values: Sequence[Tensor | None]) -> Tensor:
    present = [value for value in values if value is not None]
    shape = [max(value.shape[axis] for value in present) for axis in range(1, present[0].dim())]
    joined = present[0].new_zeros((len(values), *shape))
    for index, value in enumerate(values):
        if value is not None:
            joined[index][tuple(slice(size) for size in value.shape[1:])] = value[0]
    return joined


def _pad(rows: Sequence[Tensor], length: int, value: int, *, left: bool) -> Tensor:
    padded = torch.full((len(rows), length), value, dtype=rows[0].dtype)
    for index, row in enumerate(rows):
        padded[index, length - len(row) if left else 0 : length if left else len(row)] = row
    return padded


def _extend(extra: Tensor, length: int) -> Tensor:
    """Values per prompt token, zero (plain text) for the answer's tokens."""
    return torch.cat([extra, extra.new_zeros(length - len(extra))])
