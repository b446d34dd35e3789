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
taken before they are multiplied, so that a small change of a large product keeps its digits. Where the numbers of A and B do not
count, a site may choose a basis (A / K, B K) in which large terms cancel; what rounding may have hidden is added, so that such an
update is never shorter than it is. An honest one is measured to about 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregator.aggregation.layers import factors, layers
from fedmed.models.kinds import LORA_R, SAVED, kind_of

_HALVINGS = 200
_HIDDEN = 1e-4  # measured again in float64 where rounding may have hidden more of the square than this
_ROUNDINGS = 16  # of the size of the largest terms; sums over thousands of numbers are made in pieces


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
    """The change of weights that a site's tensors make, to about 1e-6 of its length.

    Args:
        sent: what the site started from, the tensors that did not travel included; all layers have one rank.
        update: what it returned.
        scale: s = alpha / rank.
        product_alone: the numbers of A and B do not count beside their product.
    """
    change, hidden = _change(sent, update, scale, product_alone, torch.float32)
    total = change.square + change.cube + change.fourth
    if math.isfinite(total) and hidden <= _HIDDEN * total:
        return change
    change, hidden = _change(sent, update, scale, product_alone, torch.float64)  # the square of a large float32 is none
    return Change(change.square + hidden, change.cube, change.fourth)


def _change(
    sent: Mapping[str, Tensor], update: Mapping[str, Tensor], scale: float, product_alone: bool, dtype: torch.dtype
) -> tuple[Change, float]:
    """Over all layers, with e = new B R - B R, u = B R, d = A, x = new A - A: L = e d + u x, Q = e x.

    The second value is how much of the squared length rounding may have hidden.
    """
    moved_layers = [layer for layer in layers(sent) if {layer.a, layer.b, layer.core} & update.keys()]
    size = 2 * len(sent[moved_layers[0].a]) if moved_layers else 0
    # Made once: small results kept one by one would lie in the holes that large ones leave, and the heap would grow by an adapter.
    lefts, rights = (torch.empty(len(moved_layers), size, size, dtype=dtype) for _ in range(2))
    for place, layer in enumerate(moved_layers):  # one layer's tensors at a time: `sent` may read them from a file
        own = {key: sent[key] for key in (layer.a, layer.b, layer.core) if key in sent}
        after = {key: update.get(key, tensor) for key, tensor in own.items()}
        (up, down), (new_up, new_down) = factors(own, layer, dtype), factors(after, layer, dtype)
        left, right = torch.cat([new_up - up, up], 1), torch.cat([down, new_down - down])
        torch.mm(left.T, left, out=lefts[place])
        torch.mm(right, right.T, out=rights[place])
    others = [key for key in update if kind_of(key) == SAVED or (kind_of(key) == LORA_R and not product_alone)]
    numbers = sum(float((update[key].to(dtype) - sent[key].to(dtype)).square().sum()) for key in others)
    if not moved_layers:
        return Change(numbers), 0.0
    left, right = lefts.double(), rights.double()
    rank = left.shape[1] // 2
    rise, start = slice(0, rank), slice(rank, None)
    ee, eu, ue, uu = left[:, rise, rise], left[:, rise, start], left[:, start, rise], left[:, start, start]
    dd, dx, xx = right[:, rise, rise], right[:, rise, start], right[:, start, start]
    linear = float((ee * dd + uu * xx + 2 * eu * dx).sum())
    mixed, quadratic = 2 * float((ee * dx + ue * xx).sum()), float((ee * xx).sum())
    if not product_alone:
        moved = xx if any(kind_of(key) == LORA_R for key in update) else torch.cat([ee, xx])
        numbers += float(moved.diagonal(dim1=1, dim2=2).sum())
    change = Change(linear * scale**2 + numbers, mixed * scale**2, quadratic * scale**2)
    e, u, d, x = (gram.diagonal(dim1=1, dim2=2).sum(1) for gram in (ee, uu, dd, xx))
    return change, _ROUNDINGS * torch.finfo(dtype).eps * scale**2 * float((e * d + u * x + e * x).sum())


def squared_distance(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], scale: float, *, product_alone: bool
) -> float:
    """The squared distance between two whole states, in the length above, and what rounding may have hidden of it where only
    the product counts. Their ranks may differ with `product_alone`."""
    total = hidden = 0.0
    for layer in layers(first):
        (up, down), (other_up, other_down) = factors(first, layer), factors(second, layer)
        left, right = torch.cat([up, -other_up], 1), torch.cat([down, other_down])
        total += scale**2 * float(((left.T @ left) * (right @ right.T)).sum())
        sizes = float(up.square().sum() * down.square().sum() + other_up.square().sum() * other_down.square().sum())
        hidden += _ROUNDINGS * torch.finfo(up.dtype).eps * scale**2 * sizes
    total += sum(
        float((first[key].double() - second[key].double()).square().sum())
        for key in first
        if not product_alone or kind_of(key) == SAVED
    )
    return max(0.0, total) + (hidden if product_alone else 0.0)
