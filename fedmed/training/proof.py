"""Whether each patient's gradient is autograd's, on made-up records. In: a model with an adapter; out: nothing, or an error.

    drawn tensors, made-up records of two patients -> each one's row of the gradient matrix against autograd's own gradient

Whoever mixes examples in a layer, or uses a weight where no tap sees it, shows here. It is asked before a site reserves
anything, of an adapter's shape alone:

| left out on purpose        | why                                                                                       |
| -------------------------- | ----------------------------------------------------------------------------------------- |
| the site's own records     | a comparison that fails on them would refuse a round by who was drawn, and a refusal leaves |
| the tensors of the task    | they could hide what a layer does: a weight of zero, or one that makes numbers overflow     |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from PIL import Image
from torch import Tensor, nn

from fedmed.data.collate import Batch, Collator, TooLongError
from fedmed.data.schema import Example
from fedmed.errors import ModelError, PrivacyError
from fedmed.models.adapter import adapter_parameters, load_adapter_state, reset_adapter
from fedmed.models.kinds import LORA_B, LORA_R, kind_of
from fedmed.training.device_memory import is_out_of_memory
from fedmed.training.ownership import HINT
from fedmed.training.patient_gradients import PatientGradients, example_losses

# How far a patient's row may lie from autograd's own gradient, relative; and where autocast or the base's weights round to
# 8 bits.
_AGREEMENT, _AGREEMENT_OF_8_BITS = 1e-3, 1e-1
_SEED = 0
# Two patients' records, each with the pixels of its picture: height, width.
_RECORDS = (
    (0, "Is there an opacity?", "yes", (56, 56)),
    (0, "Which lung?", "the left one", (56, 56)),
    (1, "How many lungs does this picture show?", "two", (56, 84)),
)
RECORDS = len(_RECORDS)
_ALL = (True, True, True)
# Which of them show their picture. Not every base takes records without one; where it fails on them, a round would too.
_OTHERS = ((True, False, True), (False, False, False))


@dataclass(frozen=True)
class _MadeUp:
    """A batch of the records above, on the model's device; owner and weight as in `PatientGradients.collect`."""

    batch: Batch
    owner: Tensor
    weight: Tensor


def prove(
    model: PeftModel, parameters: Mapping[str, nn.Parameter], collator: Collator, precision: str, records: int = RECORDS
) -> None:
    """Leaves drawn numbers in the adapter, and the base's weights where they were loaded.

    Args:
        model: in eval mode (no dropout); with checkpointing where the round has it.
        parameters: the tensors that are trained, by stable key.
        collator: for prompts of this adapter.
        records: at most so many in a batch. One shows nothing of a batch of several patients.

    Raises:
        PrivacyError: a gradient cannot be told apart by patient; names the tensor or its layer.
        ModelError: not even these records fit the model.
    """
    _draw_tensors(model)
    device = next(iter(parameters.values())).device
    _compare(model, parameters, _make_up(collator, _ALL[:records], device), precision)
    for shown in _OTHERS:
        try:
            _compare(model, parameters, _make_up(collator, shown[:records], device), precision)
        except (PrivacyError, ModelError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise


def _draw_tensors(model: PeftModel) -> None:
    """No tensor is zero, so that each has a gradient. Whatever `alpha` is, LoRA adds less than its layer puts out: where it
    adds more, layer upon layer makes so much of bfloat16's rounding that equal gradients differ."""
    reset_adapter(model, _SEED)
    load_adapter_state(model, {})  # what an earlier task moved of the base's weights goes back
    generator = torch.Generator().manual_seed(_SEED)
    lora = cast(LoraConfig, model.peft_config["default"])
    scale = lora.lora_alpha / lora.r
    with torch.no_grad():
        for key, own in adapter_parameters(model).items():
            spread = 0.5 / math.sqrt(math.prod(own.shape[1:])) if own.dim() > 1 else 0.1
            if kind_of(key) in (LORA_B, LORA_R):
                spread /= 2 * scale
            own.add_(spread * torch.randn(own.shape, generator=generator).to(own.device, own.dtype))


def _make_up(collator: Collator, shown: Sequence[bool], device: torch.device) -> _MadeUp:
    numbers = np.random.default_rng(_SEED)
    examples, pictures, owners = [], [], []
    for (owner, question, answer, size), with_picture in zip(_RECORDS, shown, strict=False):
        owners.append(owner)
        examples.append(Example(f"made-up {owner}", (), question, answer, "open", "vqa", "proof"))
        picture = Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8))
        pictures.append([picture] if with_picture else [])
    try:
        batch = collator.train_batch(examples, pictures)
    except TooLongError as error:
        raise ModelError(f"not even a short question fits: {error.message}", error.hint) from None
    weight = [1 / owners.count(owner) for owner in owners]
    return _MadeUp(batch.to(device), torch.tensor(owners, device=device), torch.tensor(weight, device=device))


def _compare(model: nn.Module, parameters: Mapping[str, nn.Parameter], made_up: _MadeUp, precision: str) -> None:
    engine = PatientGradients(model, parameters, precision)
    try:
        rows = engine.collect(made_up.batch, made_up.owner, made_up.weight, int(made_up.owner.max()) + 1)
    finally:
        engine.close()
    rounded = precision == "bfloat16" or any(own.dtype == torch.bfloat16 for own in model.parameters())
    agreement = _AGREEMENT_OF_8_BITS if rounded else _AGREEMENT
    for row, expected in zip(rows, _by_autograd(model, parameters, made_up, precision), strict=True):
        allowed = agreement * torch.linalg.vector_norm(row)
        for key, found in zip(parameters, row.split(engine.sizes), strict=True):
            difference = torch.linalg.vector_norm(found - expected[key].flatten().float())
            if not bool(allowed.isfinite() & (difference <= allowed)):
                raise PrivacyError(f"adapter tensor {key}: its gradient cannot be told apart by patient", HINT)


def _by_autograd(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], made_up: _MadeUp, precision: str
) -> Iterator[dict[str, Tensor]]:
    """Of each patient's loss in the same batch, by key."""
    losses = example_losses(model, made_up.batch, precision) * made_up.weight
    zeros = {key: torch.zeros_like(own) for key, own in parameters.items()}
    for patient in made_up.owner.unique():
        if losses.requires_grad:
            loss = (losses * (made_up.owner == patient)).sum()
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
            yield {key: zeros[key] if own is None else own for key, own in zip(parameters, found, strict=True)}
        else:  # adapters of the vision side do not meet a batch without images
            yield zeros
