"""What each method makes of a round's replies: an accumulator that takes them one by one. Pure.

    combiner = make_combiner(method)
    combiner.fold(update, weight)                              # once a reply
    state = combiner.result(state)

| method                                          | result                                                       |
| ----------------------------------------------- | ------------------------------------------------------------ |
| fedavg, ffa_lora, rolora, fed_sb, fedsa_lora    | the weighted mean of each tensor that travelled              |
| fedsvd                                          | that, then A and B of every layer factored anew: B A stays   |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from aggregator.aggregation.layers import State
from aggregator.aggregation.mean import WeightedMean, fold_mean
from aggregator.aggregation.svd import refactor
from aggregator.methods import Method


class Combiner(Protocol):
    """Adds replies up."""

    def fold(self, update: Mapping[str, Tensor], weight: float) -> None:
        """Takes one reply. Raises FederationError when it cannot; what was taken before is unchanged."""

    def mean(self) -> State:
        """The tensors that travelled, as the sites have them on average; empty when nothing was folded in."""

    def result(self, state: State, mean: State) -> State:
        """The next global state.

        Args:
            state: the round's incoming one.
            mean: what `mean` gave, or what a server optimizer made of it.
        """


class TensorMean:
    """The weighted mean, tensor by tensor."""

    def __init__(self) -> None:
        self._mean: WeightedMean | None = None

    def fold(self, update: Mapping[str, Tensor], weight: float) -> None:
        self._mean = fold_mean(self._mean, update, weight)

    def mean(self) -> State:
        return {} if self._mean is None else self._mean.state

    def result(self, state: State, mean: State) -> State:
        return {**state, **mean}


class FedSvd(TensorMean):
    """The mean of B under the shared A, then U S V^T = B A: A becomes V^T, B becomes U S (arXiv 2505.12805)."""

    def result(self, state: State, mean: State) -> State:
        return refactor(super().result(state, mean))


def make_combiner(method: Method) -> Combiner:
    """A new one for a round."""
    return FedSvd() if method.name == "fedsvd" else TensorMean()
