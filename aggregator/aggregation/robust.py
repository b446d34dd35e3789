"""Aggregation that some hostile sites cannot lead astray. They need every reply by itself, so secure aggregation, which shows
the aggregator their sum alone, and these rules exclude each other. Pure.

    [reply, reply, ...] -> median or trimmed mean of each number -> in place of the mean
                        -> multi-Krum -> the replies that stand closest together -> the method's own mean of them

| rule         | result, of K replies of which f may be hostile          | K at least | source           |
| ------------ | ------------------------------------------------------- | ---------- | ---------------- |
| median       | of every number; of an even K the mean of the middle two | 2 f + 1   | arXiv 1803.01498 |
| trimmed_mean | every number's mean without its f largest and f smallest | 2 f + 1   | arXiv 1803.01498 |
| multi_krum   | the K - f - 2 replies with the least sum of squared      | 2 f + 3   | arXiv 1703.02757 |
|              | distances to their K - f - 2 nearest, averaged           |           |                  |

| case                                 | what holds                                                                           |
| ------------------------------------ | ------------------------------------------------------------------------------------ |
| at most f hostile, median or trimmed | every number lies between the least and the largest honest one                       |
| basis of a reply changed (A -> G A)  | multi-Krum's choice stays where distances are of products: see .products             |
| memory                               | all replies of the round                                                             |
| honest sites that differ much        | lose weight too: with skewed data these rules cost accuracy                          |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aggregator.aggregation.layers import State
from aggregator.aggregation.products import squared_distance


def trimmed_mean(updates: Sequence[Mapping[str, Tensor]], cut: int) -> State:
    """The mean of every number without its `cut` largest and smallest, which must leave at least one."""
    kept = slice(cut, len(updates) - cut)
    return {
        name: torch.stack([update[name].float() for update in updates]).sort(0).values[kept].mean(0)
        for name in updates[0]
    }


def median(updates: Sequence[Mapping[str, Tensor]]) -> State:
    """The median of every number; the mean of the middle two where they are even in number."""
    return trimmed_mean(updates, (len(updates) - 1) // 2)


def multi_krum(states: Sequence[Mapping[str, Tensor]], faulty: int, scale: float, *, product_alone: bool) -> list[int]:
    """The places of the replies that are averaged, ascending.

    Args:
        states: each site's whole state, with what did not travel.
        faulty: f.
        scale, product_alone: of the distance, as in `squared_distance`.
    """
    count = len(states)
    distances = torch.zeros(count, count, dtype=torch.float64)
    for one in range(count):
        for other in range(one):
            apart = squared_distance(states[one], states[other], scale, product_alone=product_alone)
            distances[one, other] = distances[other, one] = apart
    near = count - faulty - 2
    scores = distances.sort(1).values[:, 1 : near + 1].sum(1)  # the first is the distance to itself
    return sorted(scores.argsort(stable=True)[:near].tolist())
