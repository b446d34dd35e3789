"""The Gaussian mechanism. In: a sum whose sensitivity is bounded; out: the sum that may leave.

    noisy sum = sum + noise_multiplier * max_grad_norm * N(0, I)          (Abadi et al., arXiv 1607.00133)

    >>> import torch
    >>> from fedmed.privacy.random import InsecureSeededRandom
    >>> add_noise(torch.zeros(2), 0.0, InsecureSeededRandom(0))
    tensor([0., 0.])

| case          | what holds                                                                                   |
| ------------- | -------------------------------------------------------------------------------------------- |
| guarantee     | with std = noise_multiplier * (L2 bound of a patient's share), one call is one Gaussian      |
|               | event of the accounting                                                                      |
| when to call  | once per logical step, on the sum over all physical batches; never per physical batch        |
| std 0         | the sum itself: no privacy, epsilon is infinity                                         |
| empty draw    | a sum of zeros: noise alone leaves                                                            |
| dtype, device | noise is made and added in float64 on the sum's device; the result has the sum's dtype        |
| memory        | beside the result, a few buffers of a block: 2 MB on the CPU, some 150 MB elsewhere           |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedmed.errors import PrivacyError
from fedmed.privacy.random import RandomSource

# Numbers in a block: on the CPU it fits the cache, elsewhere it outweighs the time that 500 kernels take to start.
_CPU_BLOCK, _DEVICE_BLOCK = 1 << 16, 1 << 21


def add_noise(total: Tensor, std: float, random: RandomSource) -> Tensor:
    """The sum [n] with independent Gaussian noise of standard deviation `std` in every element: [n].

    Raises:
        PrivacyError: `std` is negative or not finite.
    """
    if not (math.isfinite(std) and std >= 0):
        raise PrivacyError(f"noise standard deviation={std}: expected >= 0 and finite")
    if std == 0:
        return total
    block = _CPU_BLOCK if total.device.type == "cpu" else _DEVICE_BLOCK
    noisy = torch.empty_like(total)
    for part, target in zip(total.split(block), noisy.split(block), strict=True):
        target.copy_(random.normal(part.shape, total.device).mul_(std).add_(part))
    return noisy
