"""From base and adapter to one plain model, ready to serve: W = W0 + alpha / rank * B A. Nothing of PEFT is left.
A module that was trained whole takes its trained weights.

    >>> merged = merge_adapter(base, spec, state)              # base: BaseModel, state: every A and B of the adapter
    >>> save_merged(merged, base.processor, Path("merged"))    # safetensors, configuration, processor

| case                               | result                                                                     |
| ---------------------------------- | -------------------------------------------------------------------------- |
| base carries an adapter            | left as it is; the copy is made of the layers beneath                      |
| A without its B, or a wrong shape  | ModelError naming the tensor                                               |
| a saved module's tensor is missing | ModelError naming it                                                       |
| embedding and lm_head share weight | the one that the adapter changes gets its own; the configuration says so   |
| rank of a tensor is not the spec's | ModelError                                                                 |
| base in bfloat16                   | the update is computed in float32 and rounded once                         |
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from fedmed.errors import ModelError
from fedmed.messages import LoraSpec
from fedmed.models.adapter import find_saved, remove_adapter
from fedmed.models.base import BaseModel
from fedmed.models.kinds import SAVED, kind_of, layer_of


def merge_adapter(base: BaseModel, spec: LoraSpec, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A copy of the base with the adapter added to its weights; the base is not changed.

    Raises:
        ModelError: the state does not fit the base or the spec.
    """
    model = _plain_copy(base.model)
    saved = [key for key in state if kind_of(key) == SAVED]
    _check_saved(model, spec, saved)
    modules = dict(model.named_modules())
    for path in sorted({layer_of(key) for key in state if kind_of(key) != SAVED}):
        module = modules.get(path)
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.Embedding):
            raise ModelError(f"adapter tensor {path}: the base model has no such layer for LoRA")
        _add_update(_untie(model, module), path, spec, state)
    for key in saved:
        path, _, name = key.rpartition(".")
        _write(_untie(model, modules[path]), name, key, state[key])
    return model


def save_merged(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Writes model (safetensors, float32 or as loaded), configuration and processor; `load_base(folder)` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _add_update(module: nn.Module, path: str, spec: LoraSpec, state: Mapping[str, Tensor]) -> None:
    embedding = isinstance(module, nn.Embedding)
    own = cast(Tensor, module.weight)
    weight = own.T if embedding else own  # [out, in] or [out, in, *kernel]; an embedding's is [words, width]
    first, second = _pair(path, embedding, state)
    expected = [spec.rank, *weight.shape[1:]], [weight.shape[0], spec.rank, *[1] * (weight.dim() - 2)]
    if (list(first.shape), list(second.shape)) != expected:
        raise ModelError(f"adapter of {path} has shapes {list(first.shape)} and {list(second.shape)}, {expected=}")
    first, second = (tensor.to(weight.device, torch.float32).flatten(1) for tensor in (first, second))
    update = (spec.alpha / spec.rank) * (second @ first)
    with torch.no_grad():
        weight.copy_(weight.float() + update.view(weight.shape))


def _pair(path: str, embedding: bool, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    endings = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    keys = [f"{path}.{ending}" for ending in endings]
    for key in keys:
        if key not in state:
            raise ModelError(f"adapter tensor {key} is missing", "merge the whole adapter, A and B")
    return state[keys[0]], state[keys[1]]


def _check_saved(model: nn.Module, spec: LoraSpec, found: Collection[str]) -> None:
    expected = {
        f"{path}.{name}" for path in find_saved(model, spec) for name, _ in model.get_submodule(path).named_parameters()
    }
    if missing := sorted(expected - set(found)):
        raise ModelError(f"adapter tensor {missing[0]} is missing", "merge the whole adapter, saved modules too")
    if unknown := sorted(set(found) - expected):
        raise ModelError(f"adapter tensor {unknown[0]} is not in a module of {list(spec.modules_to_save)}")


def _write(module: nn.Module, name: str, key: str, value: Tensor) -> None:
    parameter = module.get_parameter(name)
    if parameter.shape != value.shape:
        raise ModelError(f"adapter tensor {key} has shape {list(value.shape)}, expected {list(parameter.shape)}")
    with torch.no_grad():
        parameter.copy_(value)


def _untie(model: PreTrainedModel, module: nn.Module) -> nn.Module:
    """`module`, whose weight is no longer shared with another module (embedding and lm_head often are one)."""
    weight = module.weight
    holders = [own for own in model.modules() if own is not module and getattr(own, "weight", None) is weight]
    if holders:
        module.weight = nn.Parameter(cast(Tensor, weight).detach().clone(), requires_grad=False)
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    return module


def _plain_copy(model: nn.Module) -> PreTrainedModel:
    """A deep copy without an adapter, in eval mode and frozen."""
    duplicate = remove_adapter(copy.deepcopy(model))
    duplicate.eval().requires_grad_(False)
    return cast(PreTrainedModel, duplicate)
