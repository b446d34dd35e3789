"""Bounds what one patient can change. In: one gradient per patient; out: one clipped sum. Pure.

Shapes: P patients, n numbers of the adapter (all trainable tensors, flattened and joined), m tensors.

    >>> import torch
    >>> gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4]])       # [P=2, n=2]
    >>> clip_and_sum(gradients, max_norm=1.0)                    # (0.6, 0.8) + (0.3, 0.4)
    tensor([0.9000, 1.2000])

A rule multiplies a patient's gradient g by a factor that depends on that patient alone. C is max_norm.

| rule      | factor                                   | what it does to the direction of the mean gradient            |
| --------- | ---------------------------------------- | ------------------------------------------------------------- |
| flat      | min(1, C / |g|)                          | patients above C count less than their size says: a bias that |
|           |                                          | grows as C shrinks (Abadi et al., arXiv 1607.00133)           |
| automatic | C / (|g| + 0.01)                         | every patient counts nearly C, so that C is no longer tuned   |
|           |                                          | but scales the rate; 0.01 lets small gradients stay small     |
|           |                                          | (AUTO-S; Bu et al., arXiv 2206.07136)                         |
| per_layer | min(1, (C / sqrt m) / |g_j|), tensor j   | no tensor crowds out another; turns a patient's gradient, and |
|           |                                          | wastes bound on tensors below their share (McMahan et al.,    |
|           |                                          | arXiv 1710.06963)                                             |

| case                     | what holds, under every rule                                                          |
| ------------------------ | ------------------------------------------------------------------------------------- |
| guarantee                | adding or removing one patient, with all its records, moves the sum by at most        |
|                          | max_norm in L2, over all tensors together: the accounting is the same for every rule  |
| rounding                 | factors carry a slack of 1e-6 and norms are added up in float64 every 4096 numbers,   |
|                          | so that float32 does not exceed the bound: a plain float32 norm of 4 million numbers  |
|                          | is off by up to 8e-5                                                                  |
| half precision           | summed in float32                                                                     |
| NaN, infinity, overflow  | that patient contributes zero and the others are untouched: a rule on that patient    |
|                          | alone, so the guarantee holds                                                         |
| no patients              | a sum of zeros                                                                        |
| memory                   | [P, n] is read twice and copied only when some patient is not finite, or in half      |
|                          | precision                                                                             |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedmed.errors import PrivacyError

_SLACK = 1e-6
_STABILITY = 0.01
_NORM_BLOCK = 4096


def clip_and_sum(gradients: Tensor, max_norm: float, rule: str = "flat", sizes: Sequence[int] = ()) -> Tensor:
    """Each patient's gradient bounded to `max_norm` by the rule, then summed: [P, n] -> [n], float32 or float64.

    Args:
        sizes: numbers in each tensor, in order, which `per_layer` needs.

    Raises:
        PrivacyError: `max_norm` is not above 0, an unknown rule, sizes that do not add up to n, or there are no tensors.
    """
    parts = _parts(gradients, max_norm, rule, sizes)
    norms = torch.stack([_norms(part) for part in parts])  # [m, P], or [1, P]
    finite = norms.isfinite().all(dim=0)
    if not bool(finite.all()):
        return clip_and_sum(gradients[finite], max_norm, rule, sizes)
    factors = RULES[rule](norms, max_norm * (1 - _SLACK) / math.sqrt(len(parts)))
    total = parts[0].new_empty(gradients.shape[1])
    for factor, part, target in zip(factors, parts, total.split([part.shape[1] for part in parts]), strict=True):
        torch.mv(part.T, factor.to(part.dtype), out=target)
    return total


def _flat(norms: Tensor, bound: float) -> Tensor:
    return (bound / norms).clamp(max=1.0)


def _automatic(norms: Tensor, bound: float) -> Tensor:
    return bound / (norms + _STABILITY)


# Norms of what is bounded together (float64) and their bound -> factors.
RULES: dict[str, Callable[[Tensor, float], Tensor]] = {"flat": _flat, "automatic": _automatic, "per_layer": _flat}


def _parts(gradients: Tensor, max_norm: float, rule: str, sizes: Sequence[int]) -> Sequence[Tensor]:
    """What is bounded together: whole rows, or the columns of each tensor [P, n_j]; views."""
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise PrivacyError(f"max_grad_norm={max_norm}: expected > 0 and finite")
    if rule not in RULES:
        raise PrivacyError(f"clipping={rule!r}: expected one of {', '.join(RULES)}")
    if not gradients.shape[1]:
        raise PrivacyError("no gradients to clip: expected at least one trainable tensor")
    if gradients.dtype not in (torch.float32, torch.float64):
        gradients = gradients.float()
    if rule != "per_layer":
        return (gradients,)
    if sum(sizes) != gradients.shape[1]:
        raise PrivacyError(f"clipping=per_layer: the tensors' sizes add up to {sum(sizes)}, not {gradients.shape[1]}")
    return gradients.split(list(sizes), dim=1)


def _norms(part: Tensor) -> Tensor:
    """L2 norm of every row: [P, n_j] -> float64 [P]. Blocks in the input's precision, between blocks in float64."""
    blocks = part.shape[1] // _NORM_BLOCK
    if not blocks:
        return torch.linalg.vector_norm(part, dim=1).double()
    whole, rest = part[:, : blocks * _NORM_BLOCK], part[:, blocks * _NORM_BLOCK :]
    inner = torch.linalg.vector_norm(whole.unflatten(1, (blocks, _NORM_BLOCK)), dim=2).double()
    return torch.hypot(torch.linalg.vector_norm(inner, dim=1), torch.linalg.vector_norm(rest, dim=1).double())
