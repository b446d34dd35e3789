"""What the model says where an answer is due. In: a training batch; out: logits at answer positions, and who is right.

    >>> logits, targets = answer_logits(model, batch, "float32")      # [B, T, V], [B, T]

Shapes: B examples, T positions at which some example of the batch has an answer token, V words of the vocabulary. Only these
positions go through the vocabulary, which is the larger half of a small model's work. `targets` hold IGNORE where an example
has no answer token.

| case                                 | result                                                                 |
| ------------------------------------ | ---------------------------------------------------------------------- |
| `answers_right`: teacher forced      | True where every answer token, the end token too, is the likeliest one |
|                                      | after the true tokens before it: where greedy decoding gives the truth |
| precision bfloat16                   | the model runs in autocast                                             |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmed.data.collate import IGNORE, Batch


def answer_logits(model: nn.Module, batch: Batch, precision: str) -> tuple[Tensor, Tensor]:
    """Logits that predict the answer tokens [B, T, V], and those tokens [B, T]."""
    targets = batch.labels[:, 1:]
    positions = (targets != IGNORE).any(dim=0).nonzero().squeeze(1)
    with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(**batch.inputs, logits_to_keep=positions, use_cache=False).logits
    return logits, targets[:, positions]


def answers_right(model: nn.Module, batch: Batch, precision: str) -> Tensor:
    """Which examples' answers the model would give, token for token: bool [B]. No gradient is kept."""
    with torch.inference_mode():
        logits, targets = answer_logits(model, batch, precision)
        return ((logits.argmax(dim=-1) == targets) | (targets == IGNORE)).all(dim=1)
