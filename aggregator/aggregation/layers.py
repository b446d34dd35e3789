"""The adapted layers of a state, and their matrices. Pure.

    state -> layers -> matrix(state[layer.b]) @ matrix(state[layer.a])        the product B A: [o, i]

    >>> state = {"m.conv.lora_A.weight": torch.ones(2, 3, 5, 5), "m.conv.lora_B.weight": torch.ones(4, 2, 1, 1)}
    >>> [layer] = layers(state)
    >>> (matrix(state[layer.b]) @ matrix(state[layer.a])).shape
    torch.Size([4, 75])

Shapes: o outputs, i inputs (of a convolution: times its kernel), r rank. An embedding's A is [r, words] and its B
[width, r], so that B A is its weight's transpose, as everywhere in fedmed.models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmed.models.kinds import LORA_A, kind_of, layer_of

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """The keys of one adapted layer's tensors: A, B, R between them, and U and D of what its base weight was moved by."""

    a: str
    b: str
    core: str
    up: str
    down: str


def layers(state: Mapping[str, Tensor]) -> list[Layer]:
    """The layers whose A is in `state`, sorted by their path."""
    return [_layer_of_a(key) for key in sorted(state) if kind_of(key) == LORA_A]


def matrix(tensor: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """A factor as a matrix: a convolution's kernel lies in its last axis."""
    return tensor.flatten(1).to(dtype)


def factors(state: Mapping[str, Tensor], layer: Layer, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """B R [o, r] and A [r, i], whose product is the layer's change without the scale."""
    up, down = matrix(state[layer.b], dtype), matrix(state[layer.a], dtype)
    return (up @ matrix(state[layer.core], dtype) if layer.core in state else up), down


def write_factors(state: State, layer: Layer, up: Tensor, down: Tensor) -> None:
    """Puts B [o, r] and A [r, i] of any rank in place of the layer's own, in their shapes and float32."""
    old_a, old_b = state[layer.a], state[layer.b]
    state[layer.a] = down.float().reshape(len(down), *old_a.shape[1:])
    state[layer.b] = up.float().reshape(len(up), -1, *old_b.shape[2:])


def _layer_of_a(key: str) -> Layer:
    path = layer_of(key)
    b = f"{path}.lora_B.weight" if key.endswith(".weight") else f"{path}.lora_embedding_B"
    return Layer(key, b, f"{path}.lora_R.weight", f"{path}.residual_up.weight", f"{path}.residual_down.weight")
