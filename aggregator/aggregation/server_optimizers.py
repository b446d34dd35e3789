"""Optimizers at the aggregator (Reddi et al., arXiv 2003.00295; FedAvgM: Hsu et al., arXiv 1909.06335). Pure.

    incoming state x, the sites' mean y -> step d = y - x -> moments -> next state

    >>> state, memory = apply_server(experiment.federation.server, state, mean, memory)     # doctest: +SKIP

| name     | moments                                              | next state                |
| -------- | ---------------------------------------------------- | ------------------------- |
| none     |                                                      | y                         |
| fedavgm  | m = beta1 m + d                                      | x + rate m                |
| fedadam  | m = beta1 m + (1 - beta1) d                          | x + rate m / (sqrt v + tau) |
|          | v = beta2 v + (1 - beta2) d^2                        |                           |
| fedyogi  | m as fedadam; v -= (1 - beta2) d^2 sign(v - d^2)     | as fedadam                |

In the first round m is 0 and v is tau^2, and nothing is corrected for it, as in the paper. A steady step d moves fedavgm by
rate / (1 - beta1) d, and fedadam by about `rate` in every number, whatever the length of d.

| case                                         | result                                                              |
| -------------------------------------------- | ------------------------------------------------------------------- |
| tensors that did not travel this round       | they and their moments stay: RoLoRA's halves keep theirs apart      |
| A and B averaged apart (fedavg)              | allowed, as is common: d is the step of each factor, not of B A     |
| moments of another layout                    | FederationError                                                     |
| differential privacy                         | post-processing of what the sites released: no further cost         |
| memory                                       | one adapter (fedavgm) or two (fedadam, fedyogi) more                |
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from aggregator.aggregation.layers import State
from fedmed.config import ServerOptimizer
from fedmed.errors import FederationError

FIRST, SECOND = "first_moment.", "second_moment."


def apply_server(
    server: ServerOptimizer, state: Mapping[str, Tensor], mean: Mapping[str, Tensor], memory: Mapping[str, Tensor]
) -> tuple[State, State]:
    """The tensors of `mean` after the optimizer's step, and its memory. Neither argument is written to.

    Args:
        state: what the round started from.
        mean: the sites' weighted mean of the tensors that travelled.
        memory: moments by FIRST or SECOND and the tensor's name; empty before the first round.

    Raises:
        FederationError: a moment has another shape than its tensor.
    """
    if server.name == "none":
        return dict(mean), dict(memory)
    moved: State = {}
    kept: State = dict(memory)
    for name, target in mean.items():
        step = target - state[name]
        first = kept[FIRST + name] = _first_moment(server, _moment(memory, FIRST + name, step, 0.0), step)
        if server.name == "fedavgm":
            moved[name] = torch.add(state[name], first, alpha=server.learning_rate)
            continue
        second = kept[SECOND + name] = _second_moment(
            server, _moment(memory, SECOND + name, step, server.tau**2), step.square_()
        )
        moved[name] = torch.addcdiv(state[name], first, second.sqrt().add_(server.tau), value=server.learning_rate)
    return moved, kept


def _moment(memory: Mapping[str, Tensor], name: str, like: Tensor, start: float) -> Tensor:
    """A copy of the moment, or what it starts from."""
    if name not in memory:
        return torch.full_like(like, start)
    if memory[name].shape != like.shape:
        shape, right = tuple(memory[name].shape), tuple(like.shape)
        raise FederationError(f"the aggregator's memory {name} has shape {shape}, expected {right}")
    return memory[name].clone()


def _first_moment(server: ServerOptimizer, moment: Tensor, step: Tensor) -> Tensor:
    share = 1.0 if server.name == "fedavgm" else 1 - server.beta1
    return moment.mul_(server.beta1).add_(step, alpha=share)


def _second_moment(server: ServerOptimizer, moment: Tensor, square: Tensor) -> Tensor:
    if server.name == "fedadam":
        return moment.mul_(server.beta2).add_(square, alpha=1 - server.beta2)
    sign = torch.sign(moment - square)
    return moment.addcmul_(square, sign, value=server.beta2 - 1)
