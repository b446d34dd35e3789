"""The methods that add up products B A, not their factors: FedEx-LoRA, FlexLoRA, FLoRA. Pure.

    each reply's B_k, A_k, w_k -> ProductSum -> sum w_k B_k A_k -> SVD -> factors of the numerical, or the asked, rank

| method    | next state                                                                            | exact        |
| --------- | ------------------------------------------------------------------------------------- | ------------ |
| fedex_lora | mean A, mean B; U D += s (sum w_k B_k A_k - mean B mean A)           (arXiv 2410.09432) | yes          |
| flora     | U D += s sum w_k B_k A_k; A drawn anew from the public seed, B zero  (arXiv 2409.05976) | yes          |
| flexlora  | B A = the best approximation of sum w_k B_k A_k of rank `lora.rank`  (arXiv 2402.11505) | but for what |
|           |                                                                                       | is cut off   |

| case                                    | result                                                                       |
| --------------------------------------- | ---------------------------------------------------------------------------- |
| memory                                  | the factors of all replies, or the layer's own o x i once that is smaller    |
| U D over many rounds                    | factored anew every round: never wider than its rank, nor than min(o, i)     |
| nothing left of it (one site in FedEx)  | no residual of that layer                                                    |
| sites of different rank                 | s is the same for all, since alpha grows with the rank (aggregator/rounds/tasks.py) |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from aggregator.aggregation.layers import Layer, State, factors, layers, matrix, write_factors
from aggregator.aggregation.mean import TensorMean, select
from aggregator.aggregation.svd import product_svd, truncate
from fedmed.models.kinds import SAVED, first_spread

# Singular values below this share of what was added up are rounding: float64 has 16 digits, what was sent has 7.
_RANK_TOLERANCE = 1e-9


class ProductSum:
    """The weighted sum of one layer's products, as the factors it came in, or dense once that takes less room."""

    def __init__(self) -> None:
        self._factors: list[tuple[Tensor, Tensor, float]] = []
        self._dense: Tensor | None = None
        self._weight = 0.0

    def add(self, up: Tensor, down: Tensor, weight: float) -> None:
        """Takes weight * up @ down: [o, r] times [r, i]."""
        self._weight += weight
        self._factors.append((up, down, weight))
        width = sum(len(down) for _, down, _ in self._factors)
        outputs, inputs = up.shape[0], down.shape[1]
        if self._dense is not None or width * (outputs + inputs) > outputs * inputs:
            total = torch.zeros(outputs, inputs, dtype=torch.float64) if self._dense is None else self._dense
            for left, right, share in self._factors:
                total.addmm_(left.double(), right.double(), alpha=share)
            self._dense, self._factors = total, []

    def mean(self) -> tuple[Tensor, Tensor]:
        """Two factors [o, n] and [n, i] in float64 of the sum over the weights' sum."""
        if self._dense is not None:
            return torch.eye(len(self._dense), dtype=torch.float64), self._dense / self._weight
        ups = [up.double() * (weight / self._weight) for up, _, weight in self._factors]
        return torch.cat(ups, 1), torch.cat([down.double() for _, down, _ in self._factors])


class Products:
    """The sum of every layer's products, and the mean of the tensors that are trained whole."""

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._saved = TensorMean()
        self._sums: dict[Layer, ProductSum] = {}

    def fold(self, update: Mapping[str, Tensor], weight: float) -> None:
        """Takes one reply, which has been checked."""
        self._saved.fold(select(update, (SAVED,)), weight)
        for layer in layers(update):
            total = self._sums.setdefault(layer, ProductSum())
            total.add(update[layer.b].flatten(1), update[layer.a].flatten(1), weight)

    def mean(self) -> State:
        """The tensors trained whole, averaged."""
        return self._saved.mean()

    def means(self) -> dict[Layer, tuple[Tensor, Tensor]]:
        """By layer, the factors of the sites' mean product."""
        return {layer: total.mean() for layer, total in self._sums.items()}


class FlexLora(Products):
    """The best approximation of the mean product that the global rank allows."""

    def result(self, state: Mapping[str, Tensor], mean: State) -> State:
        """The next global state: see aggregator.aggregation.combine."""
        result = {name: state[name] for name in state if name not in mean} | mean
        for layer, (up, down) in self.means().items():
            write_factors(result, layer, *truncate(up, down, len(state[layer.a])))
        return result


class Flora(Products):
    """The whole mean product goes into the base; the adapter begins again from the public seed and the round."""

    def __init__(self, scale: float, seed: int, number: int) -> None:
        super().__init__(scale)
        self._seed, self._number = seed, number

    def result(self, state: Mapping[str, Tensor], mean: State) -> State:
        """The next global state: see aggregator.aggregation.combine."""
        result = {name: state[name] for name in state if name not in mean} | mean
        for layer, (up, down) in self.means().items():
            add_residual(result, layer, self._scale * up, down)
        return restart(result, self._seed, self._number)


class FedEx(Products):
    """The mean of A and that of B; what their product lacks of the mean product goes into the base."""

    def __init__(self, scale: float) -> None:
        super().__init__(scale)
        self._mean = TensorMean()

    def fold(self, update: Mapping[str, Tensor], weight: float) -> None:
        """Takes one reply, which has been checked."""
        super().fold({key: update[key] for key in update if key not in select(update, (SAVED,))}, weight)
        self._mean.fold(update, weight)

    def mean(self) -> State:
        """All tensors that travelled, averaged."""
        return self._mean.mean()

    def result(self, state: Mapping[str, Tensor], mean: State) -> State:
        """The next global state: see aggregator.aggregation.combine."""
        result = {name: state[name] for name in state if name not in mean} | mean
        for layer, (up, down) in self.means().items():
            mean_up, mean_down = factors(result, layer)
            add_residual(result, layer, self._scale * torch.cat([up, -mean_up], 1), torch.cat([down, mean_down]))
        return result


def add_residual(state: State, layer: Layer, up: Tensor, down: Tensor) -> None:
    """Adds up @ down to the layer's U D in `state`, factored anew to its numerical rank; writes new tensors there."""
    if layer.up in state:
        up = torch.cat([up, matrix(state[layer.up])], 1)
        down = torch.cat([down, matrix(state[layer.down])])
    left, values, right = product_svd(up, down)
    floor = _RANK_TOLERANCE * float(up.norm() * down.norm())
    rank = int((values > floor).sum())
    for key in (layer.up, layer.down):
        state.pop(key, None)
    if rank:
        roots = values[:rank].sqrt()
        state[layer.up] = (left[:, :rank] * roots).float()
        own = state[layer.a].shape[1:]
        state[layer.down] = (roots[:, None] * right[:rank]).float().reshape(rank, *own)


def restart(state: Mapping[str, Tensor], seed: int, number: int) -> State:
    """`state` with A drawn anew from the public seed and the round, by the law of `reset_adapter`, and B zero."""
    mixed = hashlib.sha256(f"{seed} {number}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed[:8], "big") >> 1)
    result = dict(state)
    for layer in layers(state):
        shape = state[layer.a].shape
        drawn = torch.rand(shape, generator=generator, dtype=torch.float32)
        result[layer.a] = (2 * drawn - 1) / first_spread(layer.a, shape)
        result[layer.b] = torch.zeros_like(state[layer.b])
    return result


def first_rows(state: Mapping[str, Tensor], rank: int) -> State:
    """The adapter of a site of smaller rank in FLoRA, where B is zero: the first rows of A and columns of B."""
    result = dict(state)
    for layer in layers(state):
        result[layer.a] = state[layer.a][:rank].clone()
        result[layer.b] = state[layer.b][:, :rank].clone()
    return result
