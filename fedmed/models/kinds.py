"""The kinds of an adapter's tensors, told by their keys. Knows no torch: policies and the method table use it too.

    >>> [kind_of(key) for key in ("m.linear.lora_A.weight", "m.embed.lora_embedding_B", "m.projector.bias")]
    ['lora_A', 'lora_B', 'saved']

A layer's weight is W0 + U D + s B R A: s = alpha / rank; R is the identity where there is no tensor of its kind, U D zero.

| key ends in          | kind     | tensor                                                                       |
| -------------------- | -------- | ---------------------------------------------------------------------------- |
| lora_A.weight        | lora_A   | A of a linear layer [r, in] or a convolution [r, in, *kernel]                |
| lora_embedding_A     | lora_A   | A of an embedding [r, words]                                                 |
| lora_B.weight        | lora_B   | B of a linear layer [out, r] or a convolution [out, r, 1, 1(, 1)]            |
| lora_embedding_B     | lora_B   | B of an embedding [width, r]                                                 |
| lora_R.weight        | lora_R   | R between them [r, r], with `lora.core`                                      |
| residual_up.weight   | residual | U [out, k]: with D, what the base's own weight has been moved by, s included |
| residual_down.weight | residual | D [k, in] or [k, in, *kernel]                                                |
| anything else        | saved    | a parameter of a module trained whole (`lora.modules_to_save`), or a table   |
|                      |          | of virtual tokens (`lora.virtual_tokens`): virtual_tokens.weight [n, width]  |
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LORA_A, LORA_B, LORA_R, RESIDUAL, SAVED = "lora_A", "lora_B", "lora_R", "residual", "saved"
PLAIN = (LORA_A, LORA_B, SAVED)  # of ordinary LoRA
TRAINED = (LORA_A, LORA_B, LORA_R, SAVED)  # what a site may be asked to train
PARTS = ("language_model", "projector", "vision_tower")  # of a model
KINDS = (LORA_A, LORA_B, LORA_R, RESIDUAL, SAVED)
# A module belongs to the first part one of whose names is a component of its path: Qwen2.5-VL's merger lies inside
# its `visual`, so the projector is looked for first.
_PART_NAMES = {
    "projector": ("multi_modal_projector", "connector", "merger"),
    "vision_tower": ("vision_tower", "vision_model", "visual"),
    "language_model": ("language_model", "text_model"),
}


def kind_of(key: str) -> str:
    """The kind of the tensor with this key: see the table above."""
    if key.endswith((".lora_A.weight", ".lora_embedding_A")):
        return LORA_A
    if key.endswith((".lora_B.weight", ".lora_embedding_B")):
        return LORA_B
    if key.endswith(".lora_R.weight"):
        return LORA_R
    if key.endswith((".residual_up.weight", ".residual_down.weight")):
        return RESIDUAL
    return SAVED


def part_of(path: str) -> str | None:
    """The part that a module path belongs to: language_model, projector, vision_tower; None for others (lm_head)."""
    components = set(path.split("."))
    if "lm_head" in components:
        return None
    return next((part for part, names in _PART_NAMES.items() if components & set(names)), None)


def layer_of(key: str) -> str:
    """Path of the adapted layer that a tensor belongs to, of any kind but saved."""
    return key.rsplit(".residual_" if kind_of(key) == RESIDUAL else ".lora_", 1)[0]


def first_spread(key: str, shape: Sequence[int]) -> float:
    """x, where the first A with this key is drawn uniformly from -1/x to 1/x: Kaiming uniform with a = sqrt(5), as PEFT
    draws it for linear layers. An embedding's input is one word of many, so its A is drawn as for one input."""
    return math.sqrt(math.prod(shape[1:]) if key.endswith(".weight") else 1)
