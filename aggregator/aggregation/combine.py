"""What each method makes of a round's replies: an accumulator that takes them one by one. Pure.

    combiner = make_combiner(method, scale, seed, number)
    combiner.fold(update, weight)                              # once a reply, checked before
    state = combiner.result(state, combiner.mean())

| method                                       | result                                                     |
| -------------------------------------------- | ---------------------------------------------------------- |
| fedavg, ffa_lora, rolora, fed_sb, fedsa_lora | the weighted mean of each tensor that travelled            |
| fedsvd                                       | that, then A and B of every layer factored anew: B A stays |
| fedex_lora, flexlora, flora                  | aggregator.aggregation.stacking                            |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from aggregator.aggregation.layers import State
from aggregator.aggregation.mean import TensorMean
from aggregator.aggregation.stacking import FedEx, FlexLora, Flora
from aggregator.aggregation.svd import refactor
from aggregator.methods import Method


class Combiner(Protocol):
    """Adds replies up."""

    def fold(self, update: Mapping[str, Tensor], weight: float) -> None:
        """Takes one reply, which has been checked."""

    def mean(self) -> State:
        """The tensors that are averaged as such, as the sites have them on average."""

    def result(self, state: Mapping[str, Tensor], mean: State) -> State:
        """The next global state. Called once, after at least one reply.

        Args:
            state: the round's incoming one.
            mean: what `mean` gave, or what a server optimizer or a robust rule put in its place.
        """


class FedSvd(TensorMean):
    """The mean of B under the shared A, then U S V^T = B A: A becomes V^T, B becomes U S (arXiv 2505.12805)."""

    def result(self, state: Mapping[str, Tensor], mean: State) -> State:
        """The next global state."""
        return refactor(super().result(state, mean))


def make_combiner(method: Method, scale: float, seed: int, number: int) -> Combiner:
    """A new one for round `number`.

    Args:
        scale: s = alpha / rank.
        seed: the experiment's public one.
    """
    if method.name == "fedsvd":
        return FedSvd()
    if method.name == "fedex_lora":
        return FedEx(scale)
    if method.name == "flexlora":
        return FlexLora(scale)
    if method.name == "flora":
        return Flora(scale, seed, number)
    return TensorMean()
