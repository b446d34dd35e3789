"""One noisy step, taken apart into the three places where its guarantee is made. Pure; the model is elsewhere.

    who is drawn -> [gradient of each drawn patient: P x n] -> clip -> sum -> noise -> [/ lot size, optimizer]

Shapes: P drawn patients, n numbers of the adapter (all trainable tensors, flattened and joined).

| part  | guarantee it makes                                                                                  |
| ----- | --------------------------------------------------------------------------------------------------- |
| draw  | each patient takes part with probability sample_rate, on its own (fedmed.privacy.sampling)          |
| clip  | one patient, with all its records, moves the sum by at most max_grad_norm (fedmed.privacy.clipping) |
| noise | Gaussian, standard deviation noise_multiplier * max_grad_norm, once a step (fedmed.privacy.noise)   |

The parts are values so that the audit can put a faulty one in and show that it is found (fedmed.training.audit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedmed.messages import PrivacySpec
from fedmed.privacy.clipping import clip_and_sum
from fedmed.privacy.noise import add_noise
from fedmed.privacy.random import RandomSource
from fedmed.privacy.sampling import draw_patients

Draw = Callable[[int, PrivacySpec, RandomSource], npt.NDArray[np.intp]]
Clip = Callable[[Tensor, Sequence[int], PrivacySpec], Tensor]
Noise = Callable[[Tensor, PrivacySpec, RandomSource], Tensor]


def draw(num_patients: int, spec: PrivacySpec, random: RandomSource) -> npt.NDArray[np.intp]:
    """Indices, ascending, of the patients of one step."""
    return draw_patients(num_patients, spec.sample_rate, random, spec.max_patients)


def clip(gradients: Tensor, sizes: Sequence[int], spec: PrivacySpec) -> Tensor:
    """Gradients of whole patients [P, n] bounded and summed: [n]. `sizes`: numbers in each tensor, in order; sum n."""
    return clip_and_sum(gradients, spec.max_grad_norm, spec.clipping, sizes)


def noise(total: Tensor, spec: PrivacySpec, random: RandomSource) -> Tensor:
    """The sum over all physical batches [n] with its noise [n]."""
    return add_noise(total, spec.noise_multiplier * spec.max_grad_norm, random)


@dataclass(frozen=True, slots=True)
class Mechanism:
    """The parts of a step. The defaults are the real ones."""

    draw: Draw = draw
    clip: Clip = clip
    noise: Noise = noise
