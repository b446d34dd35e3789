"""What a method's result is held against: the weighted mean of the sites' weight changes, dense and in float64.

    change_error([north, valley], [600.0, 17.0], aggregated, scale) -> relative Frobenius error over all layers

A layer's change is U D + s B R A: see fedmed.models.kinds. For tests and benchmarks of small layers alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aggregator.aggregation.layers import State, factors, layers, matrix


def weight_changes(state: Mapping[str, Tensor], scale: float = 1.0) -> State:
    """U D + s B R A of each layer, by the name of its A: [o, i]."""
    changes = {}
    for layer in layers(state):
        up, down = factors(state, layer)
        changes[layer.a] = scale * (up @ down)
        if layer.up in state:
            changes[layer.a] += matrix(state[layer.up]) @ matrix(state[layer.down])
    return changes


def mean_changes(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float], scale: float = 1.0) -> State:
    """The weighted mean of the sites' weight changes: what an exact method must reach."""
    total = sum(weights)
    result: State = {}
    for state, weight in zip(states, weights, strict=True):
        for name, change in weight_changes(state, scale).items():
            result[name] = result.get(name, torch.zeros_like(change)) + change * (weight / total)
    return result


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Frobenius norm of the difference, over all tensors."""
    return math.sqrt(sum(float((first[name] - second[name]).square().sum()) for name in first))


def change_error(
    states: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    aggregated: Mapping[str, Tensor],
    scale: float = 1.0,
) -> float:
    """Relative Frobenius error of the aggregated weight changes against the weighted mean of the sites'."""
    exact = mean_changes(states, weights, scale)
    error, norm = (
        distance(exact, other)
        for other in (weight_changes(aggregated, scale), {name: torch.zeros(()) for name in exact})
    )
    return error / norm if norm else error
