"""The r x r core of a LoRA layer (`lora.core`): R between B and A, so that the layer's weight is W0 + s B R A.

    PeftModel with LoRA on linear layers -> the same, with lora_R [r, r] = 0 in each, behind A's output

    >>> model = add_core(get_peft_model(base, config))                                           # doctest: +SKIP
    >>> list(adapter_parameters(model, ("lora_R",)))[0]                                          # doctest: +SKIP
    'model.language_model.layers.0.mlp.down_proj.lora_R.weight'

Fed-SB (arXiv 2502.15436, after LoRA-XS, 2405.17604) trains R alone; A and B stay as they were drawn. There they come from a
singular value decomposition, whose last bits differ from machine to machine. Here both follow from the public seed by
operations on single numbers, bit for bit alike at every site:

| tensor | drawn from                         | why                                                                        |
| ------ | ---------------------------------- | -------------------------------------------------------------------------- |
| A      | uniform, variance 1 / (3 inputs)   | as without a core: A x is of the size of x's elements                      |
| B      | uniform, variance 1 / rank         | B R, which is B of ordinary LoRA, then has elements of the size of R's: a  |
|        |                                    | step of R moves a layer about as far as one of B at the same learning rate |
| R      | zero                               | the model starts as the base, and R has a gradient, since A and B are not 0 |

PEFT knows no core: its own forward passes through a hook on A, the per-patient one through fedmed.training.taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class _ThroughCore:
    """A forward hook on A: R A x in place of A x. An object, so that a copy of the model has its own R."""

    core: nn.Linear

    def __call__(self, module: nn.Module, received: tuple[Tensor, ...], hidden: Tensor) -> Tensor:
        del module, received
        result: Tensor = self.core(hidden)
        return result


def add_core(model: _Model) -> _Model:
    """`model` with R, zero and in float32, in every LoRA layer; all of them are linear layers."""
    for module in model.modules():
        if isinstance(module, Linear):
            down = module.lora_A["default"]
            rank = module.r["default"]
            core = nn.Linear(rank, rank, bias=False, device=down.get_parameter("weight").device, dtype=torch.float32)
            nn.init.zeros_(core.weight)
            module.lora_R = nn.ModuleDict({"default": core})
            down.register_forward_hook(_ThroughCore(core))
    return model


def core_of(module: nn.Module) -> nn.Parameter | None:
    """R of a LoRA layer, where it has one."""
    cores = getattr(module, "lora_R", None)
    return cores["default"].get_parameter("weight") if isinstance(cores, nn.ModuleDict) else None


def law_of_up(rank: int) -> float:
    """x, where B is drawn uniformly from -1/x to 1/x with a core: see the module's table."""
    return math.sqrt(rank / 3)
