"""The stages of pre-training: which parameters learn from which public targets.

| stage    | learns                                  | from                                                     |
| -------- | --------------------------------------- | -------------------------------------------------------- |
| vision   | vision tower and throw-away heads       | findings per side, zone, count; opacity and lung per patch |
| text     | decoder                                 | report text alone                                        |
| align    | projector                               | image -> report                                          |
| instruct | decoder and projector                   | image and question -> answer, image -> report            |

Legend: B batch, P patches, L tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmed.models.pretrain_data import PhantomSet
from fedmed.models.tiny import ASSISTANT, BOS, EOS, IMAGE, NUM_IMAGE_TOKENS, USER

IGNORE = -100
QUESTIONS_PER_IMAGE = 5


class Stages:
    """Runs the stages on one model, in place."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        phantoms: PhantomSet,
        seed: int,
        batch_size: int,
        report: Callable[[str], None],
    ) -> None:
        self.model, self.processor, self.phantoms = model, processor, phantoms
        self.batch_size, self.report = batch_size, report
        self.random = torch.Generator().manual_seed(seed)
        self.mean = processor.image_processor.image_mean[0]
        self.std = processor.image_processor.image_std[0]
        self._prefix = processor.tokenizer.encode(_prompt(""), add_special_tokens=False)[:-1]
        self._encoded: dict[tuple[str, str], tuple[list[int], list[int]]] = {}

    def vision(self, steps: int) -> None:
        """Vision tower on attributes (class token and mean patch) and on dense per-patch targets."""
        width = self.model.config.vision_config.hidden_size
        tower = self.model.model.vision_tower
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(1 << 30, (1,), generator=self.random)))
            num_attributes = self.phantoms.attributes.shape[1] + self.phantoms.strengths.shape[1]
            heads = nn.ModuleDict({"whole": nn.Linear(2 * width, num_attributes), "patch": nn.Linear(width, 2)})

        def loss(rows: Tensor) -> Tensor:
            hidden = tower(pixel_values=self._pixels(rows)).last_hidden_state
            patches = hidden[:, 1:]
            whole = heads["whole"](torch.cat([hidden[:, 0], patches.mean(1)], 1))
            known = self.phantoms.attributes.shape[1]
            attributes = functional.binary_cross_entropy_with_logits(whole[:, :known], self.phantoms.attributes[rows])
            strengths = functional.mse_loss(whole[:, known:], self.phantoms.strengths[rows])
            dense = torch.stack([self.phantoms.opacity[rows], self.phantoms.lungs[rows]], -1).flatten(1, 2)
            return attributes + strengths + 4 * functional.mse_loss(heads["patch"](patches), dense)

        self._run("vision", [*tower.parameters(), *heads.parameters()], loss, steps, 2e-3)

    def text(self, steps: int) -> None:
        """Decoder on report text, no image."""
        texts = [f"{BOS}{records[-1][1]}{EOS}" for records in self.phantoms.records]
        encoded = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]

        def loss(rows: Tensor) -> Tensor:
            ids = _pad([encoded[row] for row in rows], 0)
            labels = ids.masked_fill(ids == 0, IGNORE)
            value: Tensor = self.model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
            return value

        self._run("text", self._decoder(), loss, steps, 2e-3)

    def align(self, steps: int) -> None:
        """Projector only: an image to its report."""
        self._run("align", self._projector(), lambda rows: self._answer_loss(rows, only_reports=True), steps, 2e-3)

    def instruct(self, steps: int) -> None:
        """Decoder and projector: questions, short answers and reports."""
        learns = [*self._decoder(), *self._projector()]
        self._run("instruct", learns, lambda rows: self._answer_loss(rows, only_reports=False), steps, 2e-3)

    def _decoder(self) -> list[nn.Parameter]:
        return [*self.model.model.language_model.parameters()]

    def _projector(self) -> list[nn.Parameter]:
        return [*self.model.model.multi_modal_projector.parameters()]

    def _answer_loss(self, rows: Tensor, *, only_reports: bool) -> Tensor:
        """Mean loss of several answers about each image, each asked as if alone."""
        packed = []
        for row in rows.tolist():
            records = self.phantoms.records[row]
            order = torch.randperm(len(records), generator=self.random)[:QUESTIONS_PER_IMAGE].tolist()
            picks = [len(records) - 1] if only_reports else order
            packed.append([self._encode(records[pick][0], records[pick][1]) for pick in picks])
        batch = pack(packed, self._prefix)
        output = self.model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            pixel_values=self._pixels(rows),
        )
        # Token k is predicted from the token before it in the packed row, which is always its own dialogue's.
        losses = functional.cross_entropy(
            output.logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
        )
        weights = batch.weights[:, 1:].flatten()
        return (losses * weights).sum() / weights.sum()

    def _encode(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Tokens of a question up to where the answer starts, and of the answer; remembered, because most repeat."""
        if (question, answer) not in self._encoded:
            encode = self.processor.tokenizer.encode
            self._encoded[question, answer] = (
                encode(f"{question}{ASSISTANT}", add_special_tokens=False),
                encode(f"{answer}{EOS}", add_special_tokens=False),
            )
        return self._encoded[question, answer]

    def _pixels(self, rows: Tensor) -> Tensor:
        """Images as the processor makes them, each with another exposure: [B, 3, E, E]."""
        grey = self.phantoms.pixels[rows].float() / 255
        draw = torch.rand(4, len(rows), 1, 1, generator=self.random)
        grey = grey ** (2 ** (draw[0] - 0.5))
        grey = (grey - 0.5) * (0.8 + 0.4 * draw[1]) + 0.5 + 0.2 * (draw[2] - 0.5)
        grey = grey + 0.03 * draw[3] * torch.randn(grey.shape, generator=self.random)
        return self._normalise(grey.clamp(0, 1))

    def _normalise(self, grey: Tensor) -> Tensor:
        return ((grey - self.mean) / self.std)[:, None].expand(-1, 3, -1, -1)

    def _run(
        self, name: str, parameters: Iterable[nn.Parameter], loss: Callable[[Tensor], Tensor], steps: int, rate: float
    ) -> None:
        """AdamW with a linear warm-up and cosine decay over the given parameters; the rest is frozen."""
        learns = list(parameters)
        self.model.requires_grad_(False).train()
        for parameter in learns:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(learns, lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, steps))
        value = float("nan")
        for step, rows in enumerate(self._batches(steps)):
            current = loss(rows)
            optimizer.zero_grad()
            current.backward()
            torch.nn.utils.clip_grad_norm_(learns, 1.0)
            optimizer.step()
            schedule.step()
            value = current.item() if step == 0 else 0.98 * value + 0.02 * current.item()
        self.report(f"{name}: {steps} steps, loss {value:.3f}")

    def _batches(self, steps: int) -> Iterator[Tensor]:
        count = len(self.phantoms.records)
        order = torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            while len(order) < self.batch_size:
                order = torch.cat([order, torch.randperm(count, generator=self.random)])
            yield order[: self.batch_size]
            order = order[self.batch_size :]


def measure(model: Any, processor: Any, phantoms: PhantomSet) -> dict[str, float]:
    """Exact match of greedy answers per question type on phantoms, one question of each type an image."""
    stages = Stages(model, processor, phantoms, 0, 64, print)
    pixels = stages._normalise(phantoms.pixels.float() / 255)
    asked: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for row, records in enumerate(phantoms.records):
        for question, answer, _, _, kind in records:
            asked[kind].append((row, question, answer))
    model.eval()
    scores = {}
    for kind, items in sorted(asked.items()):
        right = sum(
            given == answer
            for start in range(0, len(items), 256)
            for given, (_, _, answer) in zip(
                _answers(model, processor, pixels, items[start : start + 256]), items[start : start + 256], strict=True
            )
        )
        scores[kind] = round(right / len(items), 4)
    return scores


@torch.no_grad()
def _answers(model: Any, processor: Any, pixels: Tensor, items: list[tuple[int, str, str]]) -> list[str]:
    encode = processor.tokenizer.encode
    prompts = [encode(_prompt(question), add_special_tokens=False) for _, question, _ in items]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    rows = torch.tensor([row for row, _, _ in items])
    out = model.generate(
        input_ids=ids, attention_mask=(ids != 0).long(), pixel_values=pixels[rows], max_new_tokens=40, do_sample=False
    )
    texts: list[str] = processor.batch_decode(out[:, width:], skip_special_tokens=True)
    return texts


@dataclass(frozen=True)
class Packed:
    """Dialogues that share their image: ids, positions [B, L]; mask bool [B, 1, L, L]; weights [B, L] of answer tokens."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    weights: Tensor


def pack(dialogues: list[list[tuple[list[int], list[int]]]], prefix: list[int]) -> Packed:
    """Rows of [prefix | question answer | question answer | ...] in which no dialogue sees another.

    The image's tokens are most of a prompt: this trains several questions for the price of little more than one.
    An answer's tokens share a weight of sqrt(length), so that reports count more than a yes, but do not drown it.
    """
    ids, positions, segments, weights = [], [], [], []
    for row in dialogues:
        own_ids, own_positions = list(prefix), list(range(len(prefix)))
        own_segments, own_weights = [0] * len(prefix), [0.0] * len(prefix)
        for number, (question, answer) in enumerate(row, 1):
            length = len(question) + len(answer)
            own_ids += question + answer
            own_positions += range(len(prefix), len(prefix) + length)
            own_segments += [number] * length
            own_weights += [0.0] * len(question) + [len(answer) ** -0.5] * len(answer)
        ids.append(own_ids)
        positions.append(own_positions)
        segments.append(own_segments)
        weights.append(own_weights)
    segment = _pad(segments, -1)
    length = segment.shape[1]
    same = (segment[:, :, None] == segment[:, None, :]) | (segment == 0)[:, None, :]
    mask = (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    return Packed(_pad(ids, 0), _pad(positions, 0), mask, _pad(weights, 0.0))


def _prompt(question: str) -> str:
    """As the chat template writes it, the image marker already spread over its tokens."""
    return f"{BOS}{USER}{IMAGE * NUM_IMAGE_TOKENS}{question}{ASSISTANT}"


def _pad(sequences: Sequence[Sequence[float]], value: float) -> Tensor:
    width = max(map(len, sequences))
    return torch.tensor([[*sequence, *[value] * (width - len(sequence))] for sequence in sequences])


def _pace(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    return min(1.0, (step + 1) / warm) * (0.5 * (1 + math.cos(math.pi * step / max(1, steps))) * 0.98 + 0.02)
