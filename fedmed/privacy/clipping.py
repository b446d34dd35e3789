"""Bounds what one patient can change. In: per-sample gradients and who owns them; out: one clipped sum. Pure.

Shapes: N samples (examples, images or rows of one micro-batch), P patients, ... a parameter's own shape.

    >>> import torch
    >>> gradients = [torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.3, 0.4]])]              # [N=3, 2]
    >>> by_patient = [sum_by_owner(g, torch.tensor([0, 0, 1]), 2) for g in gradients]  # [P=2, 2]
    >>> clip_and_sum(by_patient, max_norm=1.0)[0]                                      # (0.6, 0.8) + (0.3, 0.4)
    tensor([0.9000, 1.2000])

| case                     | what holds                                                                            |
| ------------------------ | ------------------------------------------------------------------------------------- |
| guarantee                | adding or removing one patient, with all its records, moves the sum by at most        |
|                          | max_norm in L2, over all tensors together (flat clipping)                             |
| rounding                 | factors carry a slack of 1e-6, so that float32 rounding does not exceed the bound     |
| gradient below the bound | unchanged                                                                             |
| NaN, infinity, overflow  | that patient contributes zero and the others are untouched: a rule on that patient    |
|                          | alone, so the guarantee holds                                                         |
| no patients              | a sum of zeros                                                                        |
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedmed.errors import PrivacyError

_SLACK = 1e-6


def sum_by_owner(gradient: Tensor, owner: Tensor, num_owners: int) -> Tensor:
    """Gradients [N, ...] summed over each owner's samples: float32 [num_owners, ...]. `owner`: [N], in 0..num_owners-1.

    Raises:
        PrivacyError: `owner` does not name one owner per sample, so that the gradient cannot be attributed.
    """
    if gradient.shape[:1] != owner.shape:
        raise PrivacyError(f"{gradient.shape[0]} per-sample gradients for {owner.numel()} samples with an owner")
    if num_owners == owner.numel() and bool((owner[1:] > owner[:-1]).all()):  # one sample each, in order
        return gradient.float()
    total = torch.zeros((num_owners, *gradient.shape[1:]), dtype=torch.float32, device=gradient.device)
    return total.index_add_(0, owner, gradient.float())


def patient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm of each patient's gradient over all tensors: [P, ...] each -> [P]."""
    squares = [torch.linalg.vector_norm(gradient.flatten(1), dim=1).square() for gradient in gradients]
    return torch.stack(squares).sum(0).sqrt()


def clip_and_sum(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Each patient's gradient scaled to at most `max_norm`, then summed: [P, ...] each -> [...] each.

    Raises:
        PrivacyError: `max_norm` is not above 0, or there are no tensors.
    """
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise PrivacyError(f"max_grad_norm={max_norm}: expected > 0 and finite")
    if not gradients:
        raise PrivacyError("no gradients to clip: expected at least one trainable tensor")
    norms = patient_norms(gradients)
    finite = norms.isfinite()
    if not bool(finite.all()):
        gradients = [_where_finite(gradient, finite) for gradient in gradients]
        norms = patient_norms(gradients)
    factor = (max_norm * (1 - _SLACK) / norms).clamp(max=1.0)
    return [torch.einsum("p...,p->...", gradient, factor) for gradient in gradients]


def _where_finite(gradient: Tensor, finite: Tensor) -> Tensor:
    shaped = finite.reshape(-1, *(1 for _ in gradient.shape[1:]))
    return torch.where(shaped, gradient, torch.zeros_like(gradient))
