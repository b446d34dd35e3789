"""Bounds what one patient can change. In: one gradient per patient; out: one clipped sum. Pure.

Shapes: P patients, n numbers of the adapter (all trainable tensors, flattened and joined).

    >>> import torch
    >>> gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4]])       # [P=2, n=2]
    >>> clip_and_sum(gradients, max_norm=1.0)                    # (0.6, 0.8) + (0.3, 0.4)
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


def clip_and_sum(gradients: Tensor, max_norm: float, rule: str = "flat", sizes: Sequence[int] = ()) -> Tensor:
    """Each patient's gradient scaled to at most `max_norm`, then summed: [P, n] -> [n].

    Raises:
        PrivacyError: `max_norm` is not above 0, an unknown rule, or there are no tensors.
    """
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise PrivacyError(f"max_grad_norm={max_norm}: expected > 0 and finite")
    if rule != "flat":
        raise PrivacyError(f"clipping={rule!r}: expected flat")
    if not gradients.shape[1]:
        raise PrivacyError("no gradients to clip: expected at least one trainable tensor")
    norms = torch.linalg.vector_norm(gradients, dim=1)
    finite = norms.isfinite()
    if not bool(finite.all()):
        gradients = torch.where(finite[:, None], gradients, torch.zeros_like(gradients))
        norms = torch.linalg.vector_norm(gradients, dim=1)
    return (max_norm * (1 - _SLACK) / norms).clamp(max=1.0) @ gradients
