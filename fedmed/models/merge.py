"""From base and adapter to one plain model, ready to serve: W = W0 + U D + s B R A. Nothing of PEFT is left.
A module that was trained whole takes its trained weights.

    >>> merged = merge_adapter(base, spec, state)              # base: BaseModel, state: every tensor of the adapter
    >>> save_merged(merged, base.processor, Path("merged"))    # safetensors, configuration, processor

| case                               | result                                                                     |
| ---------------------------------- | -------------------------------------------------------------------------- |
| base carries an adapter            | left as it is; the copy is made of the layers beneath                      |
| A without its B, or a wrong shape  | ModelError naming the tensor                                               |
| no R, no U D                       | R is the identity, U D zero (fedmed.models.kinds)                          |
| a saved module's tensor is missing | ModelError naming it                                                       |
| embedding and lm_head share weight | the one that the adapter changes gets its own; the configuration says so   |
| virtual tokens                     | tokens of the merged model: see fedmed.models.virtual                      |
| rank of a tensor is not the spec's | ModelError                                                                 |
| base in bfloat16                   | the update is computed in float32 and rounded once                         |
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import torch
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from fedmed.errors import ModelError
from fedmed.messages import LoraSpec
from fedmed.models.adapter import find_saved, remove_adapter
from fedmed.models.base import BaseModel
from fedmed.models.kinds import SAVED, kind_of, layer_of
from fedmed.models.layer_update import LayerUpdate, as_plain_lora, pair_keys
from fedmed.models.prefixed import save_prefixed
from fedmed.models.residual import LINEAR, as_matrix
from fedmed.models.virtual import SUFFIX, merge_virtual_tokens, tables_of, virtual_paths


def merge_adapter(base: BaseModel, spec: LoraSpec, state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A copy of the base with the adapter added to its weights; the base is not changed.

    Raises:
        ModelError: the state does not fit the base or the spec.
    """
    model = _plain_copy(base.model)
    saved = [key for key in state if kind_of(key) == SAVED and not key.endswith(SUFFIX)]
    virtual = virtual_paths(model, spec, find_saved(model, spec))
    _check_saved(model, spec, saved)
    modules = dict(model.named_modules())
    for path in sorted({layer_of(key) for key in state if kind_of(key) != SAVED}):
        module = modules.get(path)
        if not isinstance(module, (*LINEAR, nn.Conv2d, nn.Conv3d, nn.Embedding)):
            raise ModelError(f"adapter tensor {path}: the base model has no such layer for LoRA")
        _add_update(_untie(model, module), path, spec, state)
    for key in saved:
        path, _, name = key.rpartition(".")
        _write(_untie(model, modules[path]), name, key, state[key])
    merge_virtual_tokens(model, virtual, state, spec)
    return model


def save_merged(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Writes model (safetensors, float32 or as loaded), configuration and processor; `load_base(folder)` reads it.

    Keys and values of prefix tuning go to a file of their own: fedmed.models.prefixed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tables_of(model):
        save_prefixed(model, folder)
    else:
        model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_peft_adapter(folder: Path, spec: LoraSpec, state: Mapping[str, Tensor], base_name: str) -> None:
    """The adapter as PEFT saves it, so that `PeftModel.from_pretrained(base, folder)` reads it.

    PEFT knows neither R nor residuals: B' is B R, and U and D are stacked onto B and A, so that a layer with a residual of
    rank k is of rank r + k. The change of the weights is the same. Tables of virtual tokens, which no LoRA of PEFT's holds,
    are written beside it, to virtual_tokens.safetensors.

    Raises:
        ModelError: a tensor is missing.
    """
    layers = sorted({layer_of(key) for key in state if kind_of(key) != SAVED})
    tensors = {key: value for key, value in state.items() if kind_of(key) == SAVED and not key.endswith(SUFFIX)}
    tables = {key: value.contiguous() for key, value in sorted(state.items()) if key.endswith(SUFFIX)}
    ranks = {}
    for path in layers:
        down, up = as_plain_lora(path, spec, state)
        tensors |= dict(zip(pair_keys(path, state), (down, up), strict=True))
        if down.shape[0] != spec.rank:
            ranks[path] = down.shape[0]
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_name,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "rank_pattern": ranks,
        "alpha_pattern": {path: spec.alpha / spec.rank * rank for path, rank in ranks.items()},
        "target_modules": layers or DUMMY_TARGET_MODULES,
        "modules_to_save": list(spec.modules_to_save) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    prefixed = {f"base_model.model.{key}": value.contiguous() for key, value in sorted(tensors.items())}
    save_file(prefixed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if tables:
        save_file(tables, folder / "virtual_tokens.safetensors", metadata={"format": "pt"})


def _add_update(module: nn.Module, path: str, spec: LoraSpec, state: Mapping[str, Tensor]) -> None:
    weight = as_matrix(module)
    update = LayerUpdate.of(path, spec, state, weight).matrix()
    with torch.no_grad():
        weight.copy_(weight.float() + update.view(weight.shape))


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
