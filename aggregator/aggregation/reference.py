"""What a method's result is held against: the weighted mean of the sites' products B A, in float64.

product_error([north, valley], [600.0, 17.0], aggregated) -> relative Frobenius error over all layers
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aggregator.aggregation.mean import State


def products(state: Mapping[str, Tensor]) -> State:
    """B A of each layer in float64, by the layer's name: [o, i]. Without the scale s."""
    layers = sorted(name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight"))
    return {
        layer: state[f"{layer}.lora_B.weight"].double() @ state[f"{layer}.lora_A.weight"].double() for layer in layers
    }


def mean_products(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> State:
    """The weighted mean of the sites' products B_k A_k in float64: what an exact method must reach."""
    total = sum(weights)
    result: State = {}
    for state, weight in zip(states, weights, strict=True):
        for layer, product in products(state).items():
            result[layer] = result.get(layer, torch.zeros_like(product)) + product * (weight / total)
    return result


def product_error(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float], aggregated: Mapping[str, Tensor]
) -> float:
    """Relative Frobenius error of the aggregated products against the weighted mean of the sites' products."""
    exact, got = mean_products(states, weights), products(aggregated)
    error = sum(float((got[layer] - exact[layer]).square().sum()) for layer in exact)
    norm = sum(float(exact[layer].square().sum()) for layer in exact)
    return math.sqrt(error / norm) if norm else math.sqrt(error)
