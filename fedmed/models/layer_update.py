"""What an adapter adds to one layer's weight: s B R A + U D, as a matrix, or as plain LoRA of a larger rank.

    path, LoraSpec, state -> LayerUpdate -> [out, in * kernel], or A' and B' with s B' A' the same

    >>> own = {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(4, 2)}
    >>> LayerUpdate.of("m", LoraSpec(2, 4.0, (), ()), own, torch.zeros(4, 3)).matrix().shape
    torch.Size([4, 3])

Shapes: o outputs, i inputs, r the rank, k the residual's; A [r, i, *kernel], B [o, r, *1], R [r, r], U [o, k], D [k, i, *kernel].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmed.errors import ModelError
from fedmed.messages import LoraSpec
from fedmed.models.residual import DOWN, UP, residual_of


@dataclass(frozen=True, slots=True)
class LayerUpdate:
    """`down` is A, `up` is B R, `residual` is U D or None; `scale` is s. All float32 on the weight's device."""

    scale: float
    down: Tensor
    up: Tensor
    residual: Tensor | None

    @classmethod
    def of(cls, path: str, spec: LoraSpec, state: Mapping[str, Tensor], weight: Tensor) -> LayerUpdate:
        """Of the layer at `path`, whose weight is [out, in, *kernel]; of an embedding [width, words].

        Raises:
            ModelError: a tensor is missing or has another shape than weight and spec ask for.
        """
        down, up = factors(path, spec, state)
        expected = [spec.rank, *weight.shape[1:]], [weight.shape[0], spec.rank, *[1] * (weight.dim() - 2)]
        if (list(down.shape), list(up.shape)) != expected:
            raise ModelError(f"adapter of {path} has shapes {list(down.shape)} and {list(up.shape)}, {expected=}")
        down, up = (tensor.to(weight.device, torch.float32) for tensor in (down, up))
        return cls(spec.alpha / spec.rank, down, up, residual_of(path, state, weight))

    def matrix(self) -> Tensor:
        """s B R A + U D: [o, i * kernel]."""
        update = self.scale * (self.up.flatten(1) @ self.down.flatten(1))
        return update if self.residual is None else update + self.residual


def pair_keys(path: str, state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Keys of a layer's A and B; those of an embedding have names of their own."""
    if any(f"{path}.lora_embedding_{name}" in state for name in "AB"):
        return f"{path}.lora_embedding_A", f"{path}.lora_embedding_B"
    return f"{path}.lora_A.weight", f"{path}.lora_B.weight"


def factors(path: str, spec: LoraSpec, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A and B R of a layer.

    Raises:
        ModelError: one of A, B and, with a core, R is missing, R is not [r, r], or there is one without a core.
    """
    keys, middle = pair_keys(path, state), f"{path}.lora_R.weight"
    for key in [*keys, middle] if spec.core else keys:
        if key not in state:
            raise ModelError(f"adapter tensor {key} is missing", "the whole adapter is needed, A and B")
    down, up = (state[key] for key in keys)
    core = state.get(middle)
    if core is None:
        return down, up
    if not spec.core or list(core.shape) != [spec.rank, spec.rank]:
        raise ModelError(f"adapter tensor {middle} has shape {list(core.shape)}, expected {_core_shape(spec)}")
    return down, up.float() @ core.float()


def _core_shape(spec: LoraSpec) -> str:
    return str([spec.rank, spec.rank]) if spec.core else "none: lora.core is false"


def as_plain_lora(path: str, spec: LoraSpec, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A' = [A; D] and B' = [B R, U / s]: LoRA of rank r + k and the same scale s that adds the same to the weight."""
    down, up = (tensor.float() for tensor in factors(path, spec, state))
    if f"{path}.{UP}" not in state:
        return down, up
    residual_up = state[f"{path}.{UP}"].float() * (spec.rank / spec.alpha)
    residual_up = residual_up.view(*residual_up.shape, *[1] * (up.dim() - 2))
    return torch.cat([down, state[f"{path}.{DOWN}"].float()]), torch.cat([up, residual_up], dim=1)
