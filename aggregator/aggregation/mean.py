"""The running weighted mean of adapter states, and what is checked of a state before it is folded in. Pure.

    site state, weight -> check_update -> fold_mean -> running weighted mean

    >>> one = {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.zeros(4, 2)}
    >>> two = {"m.lora_A.weight": torch.zeros(2, 3), "m.lora_B.weight": torch.ones(4, 2)}
    >>> fold_mean(fold_mean(None, one, 1.0), two, 3.0).state["m.lora_A.weight"][0, 0].item()
    0.25

A state maps a tensor's name to a CPU float32 tensor.

| guarantee                      | the weighted mean of what was folded in, per tensor, to float32 rounding   |
| memory                         | one float32 adapter however many sites; `fold` reuses the mean it is given |
| order of arrival               | changes the last bits only (relative 1e-7 a fold)                          |
| one site                       | its own tensors, bit for bit                                               |
| weight 0, negative, not finite | FederationError; the mean is unchanged                                     |
| other keys or shapes           | FederationError; the mean is unchanged                                     |
| NaN or infinity in a tensor    | FederationError; the mean is unchanged                                     |
| differential privacy           | post-processing of what the sites released: no further cost                |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregator.aggregation.layers import State
from fedmed.errors import FederationError
from fedmed.models.kinds import kind_of


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """The running weighted mean of the states folded in so far, and the sum of their weights."""

    state: State
    weight: float


def select(state: Mapping[str, Tensor], kinds: Sequence[str]) -> State:
    """The tensors of these kinds: those that travel."""
    return {name: state[name] for name in state if kind_of(name) in kinds}


def layout(state: Mapping[str, Tensor], kinds: Sequence[str]) -> State:
    """The names and shapes of the tensors of these kinds, as tensors without memory; `state` is read one tensor at a time."""
    return {name: state[name].to("meta") for name in state if kind_of(name) in kinds}


def fold_mean(mean: WeightedMean | None, update: Mapping[str, Tensor], weight: float) -> WeightedMean:
    """The running weighted mean with one more state: mean += (w / W)(x - mean). Reuses the tensors of `mean`.

    `update` has been checked with `check_update`.
    """
    if mean is None:
        return WeightedMean({name: tensor.to(torch.float32, copy=True) for name, tensor in update.items()}, weight)
    total = mean.weight + weight
    for name, tensor in mean.state.items():
        tensor.lerp_(update[name].to(torch.float32), weight / total)
    return WeightedMean(mean.state, total)


class TensorMean:
    """The weighted mean, tensor by tensor, of what is folded in."""

    def __init__(self) -> None:
        self._mean: WeightedMean | None = None

    def fold(self, update: Mapping[str, Tensor], weight: float) -> None:
        """Takes one reply, which has been checked."""
        self._mean = fold_mean(self._mean, update, weight)

    def mean(self) -> State:
        """The mean; empty when nothing was folded in."""
        return {} if self._mean is None else self._mean.state

    def result(self, state: Mapping[str, Tensor], mean: State) -> State:
        """The next global state: see aggregator.aggregation.combine."""
        return {name: state[name] for name in state if name not in mean} | mean


def check_update(update: Mapping[str, Tensor], weight: float, expected: Mapping[str, Tensor]) -> None:
    """Refuses what cannot be folded in.

    Raises:
        FederationError: the weight is not a positive number, or the tensors differ in name or shape from `expected` or are
            not finite.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise FederationError(f"weight {weight}: expected a finite number > 0")
    check_layout(update, expected)
    check_finite(update)


def check_layout(update: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises FederationError when names or shapes differ from `expected`, naming the first difference."""
    if missing := sorted(set(expected) - set(update)):
        raise FederationError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if unknown := sorted(set(update) - set(expected)):
        raise FederationError(f"{len(unknown)} tensors are not asked for, the first is {unknown[0][:120]!r}")
    for name, tensor in expected.items():
        if update[name].shape != tensor.shape:
            shape, right = tuple(update[name].shape), tuple(tensor.shape)
            raise FederationError(f"tensor {name} has shape {shape}, expected {right}")


def check_finite(update: Mapping[str, Tensor]) -> None:
    """Raises FederationError naming the first tensor that holds a NaN or an infinity."""
    for name, tensor in update.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FederationError(f"tensor {name} holds values that are not finite")
