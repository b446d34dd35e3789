"""How far an update is from what was sent, and updates from each other: measured in what they do to the weights. Pure.

    sent, update -> Change: its norm, and the part of it that keeps within a bound
    update, update -> squared distance

The length of a change is the Frobenius norm over all layers of s (B_k R_k A_k - B R A), with the change of every number that
travelled beside it where the method averages numbers:

| what counts                                     | for which methods         | what it does not depend on                        |
| ----------------------------------------------- | ------------------------- | ------------------------------------------------- |
| the product alone, and tensors trained whole    | flexlora, flora           | the basis: G A and B G^-1 have the same length    |
| the product, and each number of A, B, R as well | all others                | nothing: such a method takes other numbers as     |
|                                                 |                           | another update, and so must the bound (an A of    |
|                                                 |                           | 1e30 beside a B of zero has no product at all)    |

A product is never written out: <X Y, Z W> is the sum over (X^T Z) * (Y W^T), two matrices of twice the rank. Differences are
taken before they are multiplied, so that a small change of a large product keeps its digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregator.aggregation.layers import factors, layers
from fedmed.models.kinds import SAVED, kind_of

_HALVINGS = 200


@dataclass(frozen=True, slots=True)
class Change:
    """|f(t)|^2 = t^2 (square + cube t + fourth t^2): f(t) is the change of weights by sent + t (update - sent)."""

    square: float
    cube: float = 0.0
    fourth: float = 0.0

    def norm(self, part: float = 1.0) -> float:
        """Length of the change at `part` of the way from what was sent to the update."""
        return part * math.sqrt(max(0.0, self.square + part * (self.cube + part * self.fourth)))

    def part_within(self, bound: float) -> float:
        """A part of the way whose change is as long as `bound`; 1 where the whole is no longer than that."""
        if self.norm() <= bound:
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.norm(middle) <= bound else (low, middle)
        return low


def measure_change(
    sent: Mapping[str, Tensor], update: Mapping[str, Tensor], scale: float, *, product_alone: bool
) -> Change:
    """The change of weights that a site's tensors make.

    Args:
        sent: what the site started from, the tensors that did not travel included.
        update: what it returned.
        scale: s = alpha / rank.
        product_alone: the numbers of A and B do not count beside their product.
    """
    square = cube = fourth = 0.0
    after = {**sent, **update}
    for layer in layers(sent):
        if not {layer.a, layer.b, layer.core} & update.keys():
            continue
        (up, down), (new_up, new_down) = factors(sent, layer), factors(after, layer)
        linear, mixed, quadratic = _layer_change(up, down, new_up - up, new_down - down)
        square, cube, fourth = square + linear, cube + mixed, fourth + quadratic
    numbers = sum(
        float((update[key].double() - sent[key].double()).square().sum())
        for key in update
        if not product_alone or kind_of(key) == SAVED
    )
    return Change(square * scale**2 + numbers, cube * scale**2, fourth * scale**2)


def _layer_change(up: Tensor, down: Tensor, rise_up: Tensor, rise_down: Tensor) -> tuple[float, float, float]:
    """|L|^2, 2 <L, Q> and |Q|^2 of L = rise_up down + up rise_down, Q = rise_up rise_down."""
    left, right = (rise_up, up), (down, rise_down)

    def inner(first: tuple[int, int], second: tuple[int, int]) -> float:
        lefts = left[first[0]].T @ left[second[0]]
        return float((lefts * (right[first[1]] @ right[second[1]].T)).sum())

    first, second, both = (0, 0), (1, 1), (0, 1)
    linear = inner(first, first) + inner(second, second) + 2 * inner(first, second)
    return linear, 2 * (inner(first, both) + inner(second, both)), inner(both, both)


def squared_distance(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], scale: float, *, product_alone: bool
) -> float:
    """The squared distance between two whole states, in the length above. Their ranks may differ with `product_alone`."""
    total = 0.0
    for layer in layers(first):
        (up, down), (other_up, other_down) = factors(first, layer), factors(second, layer)
        left, right = torch.cat([up, -other_up], 1), torch.cat([down, other_down])
        total += scale**2 * float(((left.T @ left) * (right @ right.T)).sum())
    total += sum(
        float((first[key].double() - second[key].double()).square().sum())
        for key in first
        if not product_alone or kind_of(key) == SAVED
    )
    return max(0.0, total)
