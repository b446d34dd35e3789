"""The optimizer of a round. In: the task's OptimizerSpec and the noise of a gradient; out: a torch optimizer.

    noisy sums -> / lot size -> optimizer -> adapter

    >>> spec = OptimizerSpec("adam_bc", learning_rate=1e-3, momentum=0.9, weight_decay=0.0, keep_state=True)
    >>> make_optimizer(spec, [nn.Parameter(torch.zeros(2))], noise_std=0.1).defaults["lr"]
    0.001

| name    | a step                                                              | source                             |
| ------- | ------------------------------------------------------------------- | ---------------------------------- |
| sgd     | theta -= rate * momentum buffer                                     | Abadi et al., arXiv 1607.00133     |
| adamw   | theta -= rate * m / (sqrt v + 1e-8), weight decay apart             | Loshchilov and Hutter, 1711.05101  |
| adam_bc | theta -= rate * m / (sqrt max(v - Phi, floor) + 1e-8), decay apart  | Tang et al., AAAI 2024, 2312.14334 |

| question                      | answer                                                                                     |
| ----------------------------- | ------------------------------------------------------------------------------------------ |
| what it does to the guarantee | nothing: an optimizer sees noisy sums, public numbers and its own past, which followed     |
|                               | from noisy sums. That is post-processing, and adaptive composition lets the next step      |
|                               | depend on it. Phi is public too: noise, bound and lot size are in the task and the policy  |
| moments kept between rounds   | the same: functions of noisy sums that are already accounted for                           |
| mode none                     | no noise, so Phi = 0, and adam_bc is adamw                                                 |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fedmed.errors import ModelError
from fedmed.messages import OptimizerSpec

OPTIMIZERS = ("adamw", "sgd", "adam_bc")
BETA2 = 0.999
_EPS = 1e-8
# The least second moment that adam_bc divides by, as a share of Phi. See AdamBC.
FLOOR = 0.3


def make_optimizer(spec: OptimizerSpec, parameters: Iterable[nn.Parameter], noise_std: float) -> torch.optim.Optimizer:
    """A new optimizer, without moments.

    Args:
        noise_std: standard deviation of the noise in each element of a gradient: noise_multiplier * max_grad_norm / lot
            size; 0 without noise.

    Raises:
        ModelError: an unknown name.
    """
    rate, decay, betas = spec.learning_rate, spec.weight_decay, (spec.momentum, BETA2)
    if spec.name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=spec.momentum, weight_decay=decay)
    if spec.name == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, eps=_EPS, weight_decay=decay)
    if spec.name == "adam_bc":
        return AdamBC(parameters, rate, betas, decay, noise_std)
    raise ModelError(f"optimizer={spec.name!r}: expected one of {', '.join(OPTIMIZERS)}")


def begin_round(optimizer: torch.optim.Optimizer, spec: OptimizerSpec, noise_std: float) -> None:
    """Gives kept moments what may differ from round to round of a run: the rate of the schedule, and the noise."""
    for group in optimizer.param_groups:
        group["lr"] = spec.learning_rate
        if "noise_std" in group:
            group["noise_std"] = noise_std


class AdamBC(torch.optim.Optimizer):
    """AdamW whose second moment is corrected for the privacy noise (DP-AdamBC).

    A noisy gradient is g + z with Var z = Phi = noise_std^2, known and the same in every element. Adam's second moment
    estimates E g^2 + Phi; where Phi is the larger, every element gets the same step size, and Adam has become SGD with
    momentum. Here Phi is taken off again, after the bias correction of the start:

        step = m / (sqrt(max(v - Phi, floor)) + 1e-8)

    After t steps the estimate v - Phi is off by some sqrt(2 / t) * Phi, so that it falls to 0 or below where a gradient
    is small. Hence the floor. The paper tunes it for each data set, an absolute number; here it is 0.3 Phi, so that it
    follows the noise and the lot size, and no step is more than sqrt(1 + 1 / 0.3) = 2.1 times that of AdamW on the same
    gradients. Without noise both Phi and the floor are 0, and the step is AdamW's.

    Args:
        params, lr, betas, weight_decay: as torch.optim.AdamW.
        noise_std: standard deviation of the noise in each element of a gradient.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        noise_std: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "noise_std": noise_std})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. `closure` is not taken: a noisy gradient is made once."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        (beta1, beta2), rate, noise = group["betas"], group["lr"], group["noise_std"] ** 2
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        moment = (state["square"] / (1 - beta2 ** state["step"])).sub_(noise).clamp_(min=FLOOR * noise)
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.addcdiv_(state["mean"], moment.sqrt_().add_(_EPS), value=-rate / (1 - beta1 ** state["step"]))
