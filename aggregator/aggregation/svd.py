"""The singular value decomposition of a product of thin matrices, and adapters factored anew by it. Pure.

    B [o, r], A [r, i] -> QR of B and of A^T -> SVD of the r x r core -> U S V^T = B A     O((o + i) r^2), never o x i

    >>> up, down = truncate(torch.randn(6, 3), torch.randn(3, 5), rank=2)
    >>> up.shape, torch.allclose(down @ down.T, torch.eye(2, dtype=torch.float64))
    (torch.Size([6, 2]), True)

| case                            | result                                                                               |
| ------------------------------- | ------------------------------------------------------------------------------------ |
| rank of the product <= rank     | the product itself, to float64 rounding                                              |
| larger                          | its best approximation of that rank in the Frobenius norm (Eckart and Young)         |
| B zero, as in the first round   | B zero, and A an orthonormal basis of the rows that it had: it can be trained on     |
| rank above o or i               | rows of A and columns of B beyond min(o, i) are zero: no product needs them          |
| signs, which no product fixes   | each row of A has its largest entry positive, so that equal inputs give equal bits   |
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from aggregator.aggregation.layers import State, factors, layers, write_factors


def product_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [o, k], S [k] and V^T [k, i] of up @ down in float64, with k the least of o, r and i; S falls.

    Args:
        up: [o, r].
        down: [r, i].
    """
    left, left_core = torch.linalg.qr(up.double())
    right, right_core = torch.linalg.qr(down.double().T)
    inner, values, outer = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return left @ inner, values, outer @ right.T


def truncate(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B = U S [o, rank] and A = V^T [rank, i] of the best approximation of up @ down of this rank; A is orthonormal."""
    left, values, right = product_svd(up, down)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    largest = right.gather(1, right.abs().argmax(1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).double()
    new_up, new_down = left * values * signs.T, right * signs
    lacking = rank - len(new_down)
    return torch.nn.functional.pad(new_up, (0, lacking)), torch.nn.functional.pad(new_down, (0, 0, 0, lacking))


def refactor(state: Mapping[str, Tensor], rank: int | None = None) -> State:
    """`state` with the A and B of every layer factored anew: A orthonormal, B A the same, or its best approximation.

    Args:
        rank: of the new factors; None keeps each layer's own.
    """
    result = dict(state)
    for layer in layers(state):
        up, down = factors(state, layer)
        write_factors(result, layer, *truncate(up, down, rank or len(down)))
    return result
