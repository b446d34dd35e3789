"""The longest update that is taken whole. One that is longer is scaled down towards what was sent. Pure.

    norms of the last rounds' updates -> factor x median       \\
    the task: optimizer, steps, noise, what was sent -> reach   } -> the smaller of the two

| bound  | what it is                                                | round 1 of a stage |
| ------ | --------------------------------------------------------- | ------------------ |
| median | `federation.norm_bound` times the median of the norms of  | none               |
|        | the stage's last rounds' updates, as they came, unscaled  |                    |
| reach  | no honest site's optimizer can have moved farther in the  | the same           |
|        | task's steps; for what it assumes, see the next table     |                    |

The median is sound while more than half of the replies are honest: then it lies among the honest norms. `reach` of n numbers
that start at x, in the L2 norm; `rate`, T steps, beta1, weight decay w from the task:

| optimizer | reach                                                                                                       |
| --------- | ----------------------------------------------------------------------------------------------------------- |
| adamw     | rate sqrt(n) sum_t c_t + T rate w |x|; step t's |m| / sqrt v is at most c_t whatever the gradients are, by   |
|           | Cauchy and Schwarz: c_t^2 = sum over j < t of a_j^2 / b_j, with m = sum a_j g and v = sum b_j g^2. c_1 = 1,  |
|           | c_10 = 1.04, and 7.3 in the long run for 0.9 and 0.999. t goes on over the rounds with kept moments          |
| adam_bc   | with noise 2.1 times the first term (see fedmed.training.optimizers), without as adamw                      |
| sgd, dp   | rate T / (1 - momentum) * C (1.5 / q + sigma (sqrt n + 6) / (q N)): all patients drawn and clipped to C, the |
|           | count N rounded by no more than a half, and noise of N(0, sigma C) in each number of each step, which is     |
|           | longer with a probability below 2e-8 a step                                                                 |
| otherwise | none: sgd without clipping, or with weight decay or FedProx, whose pull depends on where it is, or of a site |
|           | that hides its patient count: it divides by its policy's least count, which we do not know; a decay that is |
|           | no decay (rate w > 1). THEN A STAGE'S ROUND 1 HAS NO BOUND: a hostile site can spoil it                     |

A layer's product moves by at most s (|dB| sigma(A) + sigma(B) |dA| + |dB| |dA|), with sigma the largest singular value. What
rounding on the wire adds: bfloat16, both ways, 2^-8 of a number; int8, twice a step of 1/127 of the largest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregator.aggregation.layers import Layer, factors, layers, matrix
from fedmed.messages import OptimizerSpec, PrivacySpec, TrainTask
from fedmed.models.kinds import SAVED, kind_of
from fedmed.training.optimizers import BETA2, FLOOR

_TAIL = 6.0  # |N(0, 1)^n| exceeds sqrt n + 6 with a probability below exp(-18)
_ROUNDING = 1 + 1e-4  # norms are measured in float32
_ROUNDED = 1.5  # a released count is at least 1 / 1.5 of the true one


def median_bound(norms: Sequence[float], factor: float) -> float:
    """`factor` times the median of earlier norms; infinity where there are none or nothing has moved."""
    middle = statistics.median(norms) if norms else 0.0
    return factor * middle if middle > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Start:
    """What a bound needs to know of the tensors that a site was sent; measured once a round.

    Attributes:
        sizes: how many numbers each tensor that travels up has; norms: their L2 norms; largest: their largest numbers.
        layers: (spectral norm of B R, that of A, that of B) of each layer.
    """

    sizes: Mapping[str, int]
    norms: Mapping[str, float]
    largest: Mapping[str, float]
    layers: Mapping[Layer, tuple[float, float, float]]

    @classmethod
    def of(cls, sent: Mapping[str, Tensor], travels: Sequence[str]) -> Start:
        """Measures them; `travels` names the tensors that come back."""
        own = layers(sent)
        rank = len(sent[own[0].a]) if own else 0
        grams = torch.empty(len(own), 3, rank, rank)  # made once: see aggregator.aggregation.products
        for place, layer in enumerate(own):
            _write_grams(grams[place], sent, layer)
        roots = torch.linalg.eigvalsh(grams.double())[..., -1].clamp(min=0).sqrt() if own else []
        found = {key: _measured(sent[key]) for key in travels}
        return cls(
            {key: size for key, (size, _, _) in found.items()},
            {key: norm for key, (_, norm, _) in found.items()},
            {key: largest for key, (_, _, largest) in found.items()},
            {layer: tuple(found.tolist()) for layer, found in zip(own, roots, strict=True)},
        )


def _write_grams(grams: Tensor, sent: Mapping[str, Tensor], layer: Layer) -> None:
    """Puts those of B R, A and B into [3, r, r]."""
    (up, down), b = factors(sent, layer, torch.float32), matrix(sent[layer.b], torch.float32)
    torch.mm(up.T, up, out=grams[0])
    torch.mm(down, down.T, out=grams[1])
    torch.mm(b.T, b, out=grams[2])


def _measured(tensor: Tensor) -> tuple[int, float, float]:
    """How many numbers it has, their L2 norm, the largest of their magnitudes."""
    return tensor.numel(), float(tensor.norm()), float(tensor.abs().max())


def reach_bound(start: Start, task: TrainTask, patients: int, *, product_alone: bool, most_steps: int = 0) -> float:
    """The most that `measure_change` can find of an honest site; infinity where nothing can be said.

    Args:
        start: of what the site was sent.
        task: what it was asked to do.
        patients: as it told them; 0 where it did not.
        product_alone: as in `measure_change`.
        most_steps: of any round before, where a stage's rounds have more than the task.
    """
    optimizer = Reach.of(task, patients, most_steps)
    if math.isinf(optimizer.apart):
        return math.inf
    moved = {key: optimizer.of_tensor(start, key) for key in start.sizes}
    scale, square = task.lora.alpha / task.lora.rank, 0.0
    for layer, (up, down, b) in start.layers.items():
        rise_up = moved[layer.core] * b if layer.core in moved else moved.get(layer.b, 0.0)
        rise_down = moved.get(layer.a, 0.0)
        square += (scale * (rise_up * down + rise_down * up + rise_up * rise_down)) ** 2
    square += sum(reach**2 for key, reach in moved.items() if not product_alone or kind_of(key) == SAVED)
    return _ROUNDING * math.sqrt(square)


@dataclass(frozen=True, slots=True)
class Reach:
    """How far numbers can move in a task: each of them `apart`, all of them together `joint`, and a share `decay` of
    where they start; and what the wire rounds off. Infinite where nothing can be said."""

    apart: float
    joint: float
    decay: float
    dtype: str

    @classmethod
    def of(cls, task: TrainTask, patients: int, most_steps: int = 0) -> Reach:
        """The reach of one task at a site with so many patients, after rounds of at most so many steps."""
        spec, privacy = task.optimizer, task.privacy
        if spec.name == "sgd":
            apart, joint = sgd_reach(spec, privacy, patients)
            return cls(apart, joint, 0.0, task.dtype)
        earlier = (task.round - 1) * max(privacy.steps, most_steps) if spec.keep_state else 0
        noisy = spec.name == "adam_bc" and privacy.mode == "dp"
        longer = math.sqrt(1 + 1 / FLOOR) if noisy else 1.0
        shrink = spec.learning_rate * spec.weight_decay
        apart = longer * spec.learning_rate * adam_steps(spec.momentum, privacy.steps, earlier)
        return cls(apart if shrink <= 1 else math.inf, 0.0, privacy.steps * shrink, task.dtype)

    def of_tensor(self, start: Start, key: str) -> float:
        """How far a tensor that starts there can have moved, with what the wire adds: L2 norm."""
        root, norm = math.sqrt(start.sizes[key]), start.norms[key]
        far = self.apart * root + self.joint + self.decay * norm
        if self.dtype == "bfloat16":
            return far + 2**-8 * (norm + far)
        if self.dtype == "int8":
            return far + 2 / 127 * root * (start.largest[key] * (1 + self.decay) + self.apart + self.joint)
        return far


def adam_steps(beta1: float, steps: int, earlier: int = 0, beta2: float = BETA2) -> float:
    """Sum of c_t over the steps after the first `earlier`: see the module's table."""
    total, geometric, ratio = 0.0, 0.0, beta1**2 / beta2
    for step in range(1, earlier + steps + 1):
        geometric = 1 + ratio * geometric
        if step > earlier:
            squares = geometric * (1 - beta2**step) / (1 - beta2)
            total += (1 - beta1) / (1 - beta1**step) * math.sqrt(squares)
    return total


def sgd_reach(spec: OptimizerSpec, privacy: PrivacySpec, patients: int) -> tuple[float, float]:
    """(apart, joint) of momentum SGD on clipped and noised sums."""
    if privacy.mode != "dp" or spec.weight_decay or spec.proximal_mu or not patients:
        return math.inf, math.inf
    far = spec.learning_rate * privacy.steps / (1 - spec.momentum) * privacy.max_grad_norm / privacy.sample_rate
    noise = privacy.noise_multiplier / patients
    return far * noise, far * (_ROUNDED + noise * _TAIL)
