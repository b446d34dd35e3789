"""From base and adapter to one plain model, ready to serve: W = W0 + alpha / rank * B A. Nothing of PEFT is left.

    >>> merged = merge_adapter(base, spec, state)              # base: BaseModel, state: every A and B of the adapter
    >>> save_merged(merged, base.processor, Path("merged"))    # safetensors, configuration, processor

| case                               | result                                                                     |
| ---------------------------------- | -------------------------------------------------------------------------- |
| base carries an adapter            | left as it is; the copy is made of the layers beneath                      |
| A without its B, or a wrong shape  | ModelError naming the tensor                                               |
| rank of a tensor is not the spec's | ModelError                                                                 |
| base in bfloat16                   | the update is computed in float32 and rounded once                         |
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from fedmed.errors import ModelError
from fedmed.messages import LoraSpec
from fedmed.models.base import BaseModel


def merge_adapter(base: BaseModel, spec: LoraSpec, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A copy of the base with the adapter added to its weights; the base is not changed.

    Raises:
        ModelError: the state does not fit the base or the spec.
    """
    model = _plain_copy(base.model)
    paths = sorted({key.rsplit(".lora_", 1)[0] for key in state})
    modules = dict(model.named_modules())
    for path in paths:
        module = modules.get(path)
        if not isinstance(module, nn.Linear):
            raise ModelError(f"adapter tensor {path}: the base model has no linear layer of this name")
        _add_update(module, path, spec, state)
    return model


def save_merged(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Writes model (safetensors, float32 or as loaded), configuration and processor; `load_base(folder)` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _add_update(module: nn.Linear, path: str, spec: LoraSpec, state: Mapping[str, Tensor]) -> None:
    first, second = _pair(path, state)
    expected = ([spec.rank, module.in_features], [module.out_features, spec.rank])
    if (list(first.shape), list(second.shape)) != expected:
        raise ModelError(f"adapter of {path} has shapes {list(first.shape)} and {list(second.shape)}, {expected=}")
    device = module.weight.device
    update = (spec.alpha / spec.rank) * (second.float().to(device) @ first.float().to(device))
    with torch.no_grad():
        module.weight.copy_(module.weight.float() + update)


def _pair(path: str, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    keys = (f"{path}.lora_A.weight", f"{path}.lora_B.weight")
    for key in keys:
        if key not in state:
            raise ModelError(f"adapter tensor {key} is missing", "merge the whole adapter, A and B")
    return state[keys[0]], state[keys[1]]


def _plain_copy(model: nn.Module) -> PreTrainedModel:
    """A deep copy without LoRA layers, in eval mode and frozen."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    duplicate = copy.deepcopy(inner)
    for path, module in list(duplicate.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, name = path.rpartition(".")
            setattr(duplicate.get_submodule(parent), name, module.get_base_layer())
    duplicate.__dict__.pop("peft_config", None)
    duplicate.eval().requires_grad_(False)
    return cast(PreTrainedModel, duplicate)
