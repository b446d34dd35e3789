"""LoRA adapters: where they sit, how they start, and their tensors as a plain dictionary that travels.

    model + LoraSpec + public seed -> PeftModel -> State (key -> float32 tensor) -> safetensors bytes, and back

    >>> from fedmed.messages import LoraSpec
    >>> from fedmed.models.base import load_base
    >>> spec = LoraSpec(rank=4, alpha=8.0, parts=("projector",), targets=("linear_1",))
    >>> list(adapter_state(add_adapter(load_base("fedmed-tiny").model, spec, seed=0)))
    ['model.multi_modal_projector.linear_1.lora_A.weight', 'model.multi_modal_projector.linear_1.lora_B.weight']

Shapes: A [rank, in], B [out, rank]; the layer adds alpha / rank * B A to its weight (Hu et al., arXiv 2106.09685).
A key is the adapted module's path in the plain model, then lora_A.weight or lora_B.weight: no prefix of PEFT's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmed.errors import ModelError, WireError
from fedmed.messages import LoraSpec
from fedmed.models.base import DTYPES

State = dict[str, torch.Tensor]
_ENDINGS = ("lora_A.weight", "lora_B.weight")
_PEFT_PREFIX = "base_model.model."
# A module belongs to the first part one of whose names is a component of its path: Qwen2.5-VL's merger lies inside
# its `visual`, so the projector is looked for first.
_PART_NAMES = {
    "projector": ("multi_modal_projector", "connector", "merger"),
    "vision_tower": ("vision_tower", "vision_model", "visual"),
    "language_model": ("language_model", "text_model"),
}


def part_of(path: str) -> str | None:
    """The part that a module path belongs to: language_model, projector, vision_tower; None for others (lm_head)."""
    components = set(path.split("."))
    if "lm_head" in components:
        return None
    return next((part for part, names in _PART_NAMES.items() if components & set(names)), None)


def find_targets(model: nn.Module, spec: LoraSpec) -> list[str]:
    """Sorted paths of the linear layers that `spec` names.

    Raises:
        ModelError: the model lacks a part, or a target matches no linear layer of the parts.
    """
    linear = {name: part_of(name) for name, module in model.named_modules() if type(module) is nn.Linear}
    if missing := [part for part in spec.parts if part not in linear.values()]:
        found = sorted({part for part in linear.values() if part})
        raise ModelError(f"lora.parts: the model has no linear layers in {missing}, it has {found}")
    inside = sorted(name for name, part in linear.items() if part in spec.parts)
    if spec.targets == ("all-linear",):
        return inside
    for target in spec.targets:
        if not any(_ends_with(name, target) for name in inside):
            endings = sorted({name.rsplit(".", 1)[-1] for name in inside})
            raise ModelError(
                f"lora.targets: {target!r} matches no linear layer of {list(spec.parts)}", f"try {endings}"
            )
    return [name for name in inside if any(_ends_with(name, target) for target in spec.targets)]


def add_adapter(model: PreTrainedModel, spec: LoraSpec, seed: int) -> PeftModel:
    """`model` with LoRA layers put in place (it is changed, not copied), A drawn from the public `seed`, B zero.

    The model must be on its device already: moving it later would leave an optimizer with the old tensors.

    Raises:
        ModelError: the model has an adapter already, or see `find_targets`.
    """
    if any(".lora_A." in name for name, _ in model.named_parameters()):
        raise ModelError("the model carries an adapter already", "remove it first with PeftModel.unload()")
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=cast(int, spec.alpha),  # PEFT annotates an int and takes any number
        target_modules=find_targets(model, spec),
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        adapted = cast(PeftModel, get_peft_model(model, config))
    reset_adapter(adapted, seed)
    return adapted


def reset_adapter(model: PeftModel, seed: int) -> None:
    """A anew from `seed` (Kaiming uniform with a = sqrt(5), as PEFT does, on the CPU, in sorted key order), B zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in adapter_parameters(model).items():
            if key.endswith("lora_B.weight"):
                parameter.zero_()
            else:
                bound = 1 / math.sqrt(parameter.shape[1])
                drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.copy_((2 * drawn - 1) * bound)


def adapter_parameters(model: nn.Module, endings: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The adapter's parameters by stable key, sorted. `endings`: such as ("lora_B",); empty takes all."""
    found = {
        name.removeprefix(_PEFT_PREFIX).replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }
    return {key: found[key] for key in sorted(found) if not endings or _has_ending(key, endings)}


def adapter_state(model: nn.Module, endings: Sequence[str] = ()) -> State:
    """Copies of the adapter's tensors on the CPU in float32, sorted by key. `endings` as in `adapter_parameters`."""
    return {
        key: parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
        for key, parameter in adapter_parameters(model, endings).items()
    }


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Writes `state`, which may be a part of the adapter, into the model. All of it is checked before any is written.

    Raises:
        ModelError: a key the adapter lacks, another shape, or a value that is not finite; names the tensor.
    """
    parameters = adapter_parameters(model)
    if unknown := sorted(set(state) - set(parameters)):
        raise ModelError(f"adapter tensor {unknown[0]} ({len(unknown)} such) is not in this model's adapter")
    check_state(state, {key: parameters[key] for key in state})
    with torch.no_grad():
        for key, value in state.items():
            parameters[key].copy_(value)


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


def encode_state(state: Mapping[str, Tensor], dtype: str) -> bytes:
    """safetensors bytes in `dtype` (float32 or bfloat16), equal for equal states.

    Raises:
        ModelError: another dtype.
    """
    if dtype not in DTYPES:
        raise ModelError(f"wire dtype={dtype!r}: expected one of {sorted(DTYPES)}")
    return save_safetensors({key: state[key].to("cpu", DTYPES[dtype]).contiguous() for key in sorted(state)})


def decode_state(payload: bytes | memoryview) -> State:
    """A state in float32 from what `encode_state` wrote. The caller compares keys and shapes with `check_state`.

    Raises:
        WireError: not safetensors, or a key or dtype that no adapter has.
        ModelError: values that are not finite.
    """
    try:
        tensors = load_safetensors(bytes(payload))
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise WireError(f"an adapter payload of {len(payload)} bytes is not safetensors") from error
    for key, value in tensors.items():
        if not key.endswith(_ENDINGS) or value.dtype not in DTYPES.values() or value.dim() != 2:
            raise WireError(f"tensor {key[:200]} ({value.dtype}, {value.dim()} axes) is not an adapter's")
    state = {key: tensors[key].float() for key in sorted(tensors)}
    check_state(state, state)
    return state


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


def _has_ending(key: str, endings: Sequence[str]) -> bool:
    return any(_ends_with(key.removesuffix(".weight"), ending) for ending in endings)
