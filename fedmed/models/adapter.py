"""Adapters: where they sit, how they start, and their tensors as a plain dictionary that travels.

    model + LoraSpec + public seed -> PeftModel -> State (key -> float32 tensor), and back; as bytes: fedmed.models.encoding

    >>> from fedmed.messages import LoraSpec
    >>> from fedmed.models.base import load_base
    >>> spec = LoraSpec(rank=4, alpha=8.0, parts=("projector",), targets=("linear_1",))
    >>> list(adapter_state(add_adapter(load_base("fedmed-tiny").model, spec, seed=0)))
    ['model.multi_modal_projector.linear_1.lora_A.weight', 'model.multi_modal_projector.linear_1.lora_B.weight']

Shapes: A [rank, in], B [out, rank]; the layer adds alpha / rank * B A to its weight (Hu et al., arXiv 2106.09685).
A key is the adapted module's path in the plain model, then lora_A.weight or the like (see fedmed.models.kinds), or the
path of a parameter that is trained whole: no prefix of PEFT's.

| asked for                                    | result                                                             |
| -------------------------------------------- | ------------------------------------------------------------------ |
| all-linear                                   | LoRA on every linear layer of the parts; never on lm_head          |
| a name of Conv2d, Conv3d or Embedding layers | LoRA on them, where `_adaptable` can be merged exactly             |
| modules_to_save                              | these modules trained whole, from the base's weights; no LoRA inside |
| core                                         | R between B and A of every linear layer: see fedmed.models.core    |
| virtual_tokens                               | embeddings, or keys and values, of own tokens: fedmed.models.virtual |
| an embedding tied to lm_head                 | adapted alone: lm_head keeps the base's weight, merging unties them |
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmed.errors import ModelError
from fedmed.messages import LoraSpec
from fedmed.models.core import add_core, law_of_up
from fedmed.models.encoding import State as State
from fedmed.models.encoding import decode_state as decode_state
from fedmed.models.encoding import encode_state as encode_state
from fedmed.models.kinds import LORA_A, LORA_B, LORA_R, PARTS, RESIDUAL, first_spread, kind_of, part_of
from fedmed.models.residual import LINEAR, check_residuals, move_bases, put_back
from fedmed.models.virtual import (
    COVERED,
    SUFFIX,
    add_virtual_tokens,
    remove_virtual_tokens,
    reset_virtual_tokens,
    virtual_paths,
)

_PEFT_PREFIX = "base_model.model."
_SAVED_PATH = ".modules_to_save.default"


def find_targets(model: nn.Module, spec: LoraSpec) -> list[str]:
    """Sorted paths of the layers that `spec` puts LoRA on; [] when all of the parts is trained whole.

    Raises:
        ModelError: the model lacks a part, a target matches no layer of the parts that LoRA can be put on, or
            `spec.core` and a layer is not linear.
    """
    layers = {name: module for name, module in model.named_modules() if _adaptable(module)}
    parts = {part_of(name) for name, module in layers.items() if type(module) in LINEAR}
    if missing := [part for part in spec.parts if part not in parts]:
        found = sorted({part for part in parts if part})
        raise ModelError(f"lora.parts: the model has no linear layers in {missing}, it has {found}")
    saved = find_saved(model, spec)
    inside = sorted(name for name in layers if part_of(name) in spec.parts and not _lies_in(name, saved))
    if spec.targets == ("all-linear",):
        return [name for name in inside if type(layers[name]) in LINEAR]
    for target in spec.targets:
        if not any(_ends_with(name, target) for name in inside):
            endings = sorted({name.rsplit(".", 1)[-1] for name in inside})
            raise ModelError(
                f"lora.targets: {target!r} matches no linear, convolution or embedding layer of {list(spec.parts)}",
                f"try {endings}" if endings else "these parts are in lora.modules_to_save: take targets all-linear",
            )
    found = [name for name in inside if any(_ends_with(name, target) for target in spec.targets)]
    if spec.core and (other := next((name for name in found if type(layers[name]) not in LINEAR), None)):
        raise ModelError(
            f"lora.core: {other} is a {type(layers[other]).__name__}, expected linear layers",
            "leave it out of lora.targets, or take a method without a core",
        )
    return found


def find_saved(model: nn.Module, spec: LoraSpec) -> list[str]:
    """Sorted paths of the modules that `spec` trains whole; of two that lie in each other, the outer one.

    Raises:
        ModelError: an ending matches no module with weights, or one outside of the parts and lm_head.
    """
    modules = [name for name, module in model.named_modules() if any(True for _ in module.parameters())]
    found: set[str] = set()
    for ending in spec.modules_to_save:
        matching = [name for name in modules if name and _ends_with(name, ending)]
        if not matching:
            raise ModelError(
                f"lora.modules_to_save: {ending!r} matches no module with weights", "take the ending of a path"
            )
        if stray := [name for name in matching if part_of(name) is None and "lm_head" not in name.split(".")]:
            raise ModelError(f"lora.modules_to_save: {stray[0]} belongs to no part of {list(PARTS)}")
        found.update(matching)
    return sorted(name for name in found if not _lies_in(name, found - {name}))


def add_adapter(model: PreTrainedModel, spec: LoraSpec, seed: int) -> PeftModel:
    """`model` with its adapter put in place (it is changed, not copied), as `reset_adapter` starts it.

    The model must be on its device already: moving it later would leave an optimizer with the old tensors.

    Raises:
        ModelError: the model has an adapter already, or see `find_targets`, `find_saved` and `virtual_paths`.
    """
    if any(isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) for module in model.modules()):
        raise ModelError("the model carries an adapter already", "take it off first with remove_adapter")
    saved = find_saved(model, spec)
    virtual = virtual_paths(model, spec, saved)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=cast(int, spec.alpha),  # PEFT annotates an int and takes any number
        target_modules=find_targets(model, spec) or DUMMY_TARGET_MODULES,
        modules_to_save=saved or None,
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # An embedding tied to lm_head is adapted alone, and merge_adapter unties it.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        # PEFT finds out by itself that GPT-2's weights are [in, out].
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        # PEFT asks transformers by a name that it will drop: nothing that a user could mend.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        try:
            adapted = cast(PeftModel, get_peft_model(model, config))
            for wrapper in _saved_wrappers(adapted):
                wrapper.modules_to_save.float()
            if spec.core:
                add_core(adapted)
            add_virtual_tokens(model, virtual, spec)
            reset_adapter(adapted, seed)
        except BaseException:  # a GPU that is full: the next attempt must find the plain model
            remove_adapter(model)
            raise
    return adapted


def remove_adapter(model: nn.Module) -> nn.Module:
    """The plain model with the base's weights, in place. PEFT's own `unload` would leave trained whole modules in it."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    for path, module in list(plain.named_modules()):
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            parent, _, name = path.rpartition(".")
            base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
            put_back(base)
            setattr(plain.get_submodule(parent), name, base)
    remove_virtual_tokens(plain)
    plain.__dict__.pop("peft_config", None)
    return plain


def reset_adapter(model: PeftModel, seed: int) -> None:
    """A anew from `seed`, B zero, saved modules as the base has them: the same at every site. With a core, R is zero and
    B is drawn too. Virtual tokens: `reset_virtual_tokens`.

    A is drawn as `first_spread` says, on the CPU, in sorted key order. B with a core: fedmed.models.core.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = adapter_parameters(model, (LORA_A, LORA_B, LORA_R))
    core = any(kind_of(key) == LORA_R for key in parameters)
    with torch.no_grad():
        for key, parameter in parameters.items():
            if (law := _first_law(key, parameter, core)) is None:
                parameter.zero_()
            else:
                drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.copy_((2 * drawn - 1) / law)
        for wrapper in _saved_wrappers(model):
            wrapper.modules_to_save["default"].load_state_dict(wrapper.original_module.state_dict())
    reset_virtual_tokens(model, seed)


def _first_law(key: str, parameter: Tensor, core: bool) -> float | None:
    """x, where a tensor is drawn uniformly from -1/x to 1/x; None where it starts at zero."""
    if kind_of(key) == LORA_A:
        return first_spread(key, parameter.shape)
    return law_of_up(parameter.shape[1]) if core and kind_of(key) == LORA_B else None


def adapter_parameters(model: nn.Module, kinds: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The adapter's parameters by stable key, sorted. `kinds`: see fedmed.models.kinds; empty takes all."""
    found = {
        stable_key(name): parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name or _SAVED_PATH in name or name.endswith(SUFFIX)
    }
    return {key: found[key] for key in sorted(found) if not kinds or kind_of(key) in kinds}


def adapter_state(model: nn.Module, kinds: Sequence[str] = ()) -> State:
    """Copies of the adapter's tensors on the CPU in float32, sorted by key. `kinds` as in `adapter_parameters`."""
    return {
        key: parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
        for key, parameter in adapter_parameters(model, kinds).items()
    }


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Writes `state`, which may be a part of the adapter, into the model. All of it is checked before any is written.

    Residuals in it move the base's weights; a layer for which it has none gets its own weight back (fedmed.models.residual).

    Raises:
        ModelError: a key the adapter lacks, another shape, or a value that is not finite; names the tensor.
    """
    parameters = adapter_parameters(model)
    written = {key: value for key, value in state.items() if kind_of(key) != RESIDUAL}
    if unknown := sorted(set(written) - set(parameters)):
        raise ModelError(f"adapter tensor {unknown[0]} ({len(unknown)} such) is not in this model's adapter")
    check_state(written, {key: parameters[key] for key in written})
    bases = {
        stable_key(name): module.get_base_layer()
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    check_residuals(bases, state)
    with torch.no_grad():
        for key, value in written.items():
            parameters[key].copy_(value)
    move_bases(bases, state)


def check_state(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Refuses a state whose keys or shapes are not those of `like`, or whose values are not all finite.

    Raises:
        ModelError: names the first wrong tensor, its shape and the expected one.
    """
    if missing := sorted(set(like) - set(state)):
        raise ModelError(f"adapter tensor {missing[0]} ({len(missing)} such) is missing")
    if unknown := sorted(set(state) - set(like)):
        raise ModelError(f"adapter tensor {unknown[0]} ({len(unknown)} such) was not asked for")
    for key, value in state.items():
        if value.shape != like[key].shape:
            raise ModelError(f"adapter tensor {key} has shape {list(value.shape)}, expected {list(like[key].shape)}")
        if not bool(value.isfinite().all()):
            raise ModelError(f"adapter tensor {key} holds values that are not finite")


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted keys, shapes and float32 values."""
    total = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().to("cpu", torch.float32).contiguous()
        total.update(f"{key}\0{list(value.shape)}\0".encode())
        total.update(value.numpy().tobytes())
    return total.hexdigest()


def _ends_with(path: str, ending: str) -> bool:
    return path == ending or path.endswith(f".{ending}")


def _lies_in(path: str, outer: Collection[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in outer)


def _adaptable(module: nn.Module) -> bool:
    """Whether PEFT's LoRA of this layer is exactly a change of its weight, so that it can be merged."""
    if type(module) in (nn.Conv2d, nn.Conv3d):
        conv = cast(nn.Conv2d, module)
        return conv.groups == 1 and set(conv.dilation) == {1} and conv.padding_mode == "zeros"
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq
    return type(module) in LINEAR


def _saved_wrappers(model: nn.Module) -> list[ModulesToSaveWrapper]:
    return [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]


def stable_key(name: str) -> str:
    """A parameter's or module's name in a PeftModel without what PEFT puts around it."""
    plain = name.removeprefix(_PEFT_PREFIX).replace(_SAVED_PATH, "").replace(COVERED, "")
    return re.sub(r"\.default(?=\.weight$|$)", "", plain)
