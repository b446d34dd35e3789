"""Residuals: what an aggregation method moves the base's own weights by, W = W0 + U D. They travel down only.

    LoRA layers of a model + state -> checked updates -> moved base weights -> W0 again

Shapes: U [out, k], D [k, in] or [k, in, *kernel]; of an embedding U [width, k], D [k, words]. k is the method's affair.

| case                                | result                                                                          |
| ----------------------------------- | ------------------------------------------------------------------------------- |
| the same state twice, or another    | absolute: always W0 + U D, never added up                                       |
| a layer without a residual, or k=0  | W0, and no memory for a copy                                                    |
| U without D, or shapes that differ  | ModelError naming the tensor, before anything is moved                          |
| a layer that carries no LoRA        | ModelError                                                                      |
| base in bfloat16                    | U D and the sum in float32, rounded once                                        |
| embedding tied to lm_head           | the embedding alone moves, as merging does                                      |
| adapter taken off                   | the very parameters that the base was loaded with are back, ties and bits alike |
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedmed.errors import ModelError
from fedmed.models.kinds import RESIDUAL, kind_of, layer_of

UP, DOWN = "residual_up.weight", "residual_down.weight"
# Where a moved layer keeps its own parameter: out of the module's parameters, but with it when the model is copied.
_FIRST = "_fedmed_first_weight"
# GPT-2 and its kin have a linear layer of their own, whose weight is [in, out].
LINEAR = (nn.Linear, Conv1D)
_TRANSPOSED = (nn.Embedding, Conv1D)


def residual_of(layer: str, state: Mapping[str, Tensor], weight: Tensor) -> Tensor | None:
    """U D of one layer in float32 on the weight's device, [out, in * kernel]; None where it has no residual.

    Args:
        weight: the layer's weight as [out, in, *kernel].

    Raises:
        ModelError: one of the two is missing, or their shapes are not those of the weight; names the tensor.
    """
    keys = f"{layer}.{UP}", f"{layer}.{DOWN}"
    present = [key for key in keys if key in state]
    if not present:
        return None
    if len(present) == 1:
        raise ModelError(f"adapter tensor {present[0]} stands alone", "a residual is two tensors, up and down")
    up, down = (state[key] for key in keys)
    rank = up.shape[-1]
    expected = [weight.shape[0], rank], [rank, *weight.shape[1:]]
    if (list(up.shape), list(down.shape)) != expected:
        raise ModelError(f"residual of {layer} has shapes {list(up.shape)} and {list(down.shape)}, {expected=}")
    if not rank:
        return None
    return up.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32).flatten(1)


def check_residuals(bases: Mapping[str, nn.Module], state: Mapping[str, Tensor]) -> None:
    """Refuses residuals that `move_bases` could not apply.

    Args:
        bases: the layers beneath the adapter's, by path.
        state: may hold tensors of every kind.

    Raises:
        ModelError: as the table above says, or a value that is not finite.
    """
    for key in (key for key in state if kind_of(key) == RESIDUAL):
        layer = layer_of(key)
        if layer not in bases:
            raise ModelError(f"adapter tensor {key}: this model has no adapted layer {layer}")
        if not bool(state[key].isfinite().all()):
            raise ModelError(f"adapter tensor {key} holds values that are not finite")
        weight = as_matrix(bases[layer]).detach()
        residual_of(layer, state, weight.to("meta"))  # shapes alone


def move_bases(bases: Mapping[str, nn.Module], state: Mapping[str, Tensor]) -> None:
    """Every layer's weight becomes W0 + U D; W0 where `state` has no residual for it. Checked before."""
    for layer, base in bases.items():
        update = residual_of(layer, state, as_matrix(base))
        if update is None:
            put_back(base)
            continue
        first: nn.Parameter = base.__dict__.setdefault(_FIRST, base.weight)
        if base.weight is first:
            base.weight = nn.Parameter(torch.empty_like(first), requires_grad=False)
        with torch.no_grad():
            source = first.T if isinstance(base, _TRANSPOSED) else first
            as_matrix(base).copy_(source.float() + update.view(source.shape))


def put_back(base: nn.Module) -> None:
    """The layer's own weight again, the parameter it was loaded with."""
    if (first := base.__dict__.pop(_FIRST, None)) is not None:
        base.weight = first


def as_matrix(base: nn.Module) -> Tensor:
    """A layer's weight as [out, in, *kernel]; of an embedding [width, words]. A view."""
    weight = base.get_parameter("weight")
    return weight.T if isinstance(base, _TRANSPOSED) else weight
