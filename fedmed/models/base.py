"""The frozen base model: the embedded one or any `AutoModelForImageTextToText` with its `AutoProcessor`.

    name (embedded | folder | hub id) -> folder -> SHA-256 checked -> model in eval mode, frozen, float32

    >>> base = load_base("fedmed-tiny")
    >>> base.model.training, next(base.model.parameters()).requires_grad
    (False, False)

No code of a checkpoint is ever run (no trust_remote_code) and weights are read from safetensors alone.

| case                                        | result                                         |
| ------------------------------------------- | ---------------------------------------------- |
| hash is not the expected one                | ModelError before the model is built           |
| not on this machine, hub not reachable      | ModelError that says how to bring the folder   |
| weights only as pickle (.bin)               | ModelError                                     |
| cuda asked for and absent                   | ModelError                                     |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedmed.errors import ModelError
from fedmed.models.checkpoint import checkpoint_path, checkpoint_sha256

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


@dataclass
class BaseModel:
    """A frozen model with its processor. `sha256` is of the checkpoint's files: see `checkpoint_sha256`."""

    name: str
    sha256: str
    model: PreTrainedModel
    processor: ProcessorMixin


def positions_of(model: nn.Module) -> int:
    """How many tokens of prompt and answer the model takes; 2048 where its configuration does not say."""
    config: Any = model.config
    return int(getattr(config.get_text_config(), "max_position_embeddings", 2048))


def resolve_device(device: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a torch device.

    Raises:
        ModelError: another word, or cuda where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ModelError(f"device={device!r}: expected auto, cpu or cuda", "set device: auto")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device=cuda: this machine or this torch has no CUDA device", "set device: auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def compute_in_float32() -> None:
    """Has a GPU's convolutions compute in float32 for the rest of this process, as torch has it for matrix products.

    By torch's default cuDNN rounds their factors to TF32's 10 bits: logits of a model and of its merged copy then differ
    by 1e-3, and a patient's gradient by more than rounding. Autocast to bfloat16 is not affected.
    """
    torch.backends.cudnn.allow_tf32 = False


def load_base(name: str, *, device: str = "cpu", expected_sha256: str = "", dtype: str = "float32") -> BaseModel:
    """The base model `name`, frozen and in eval mode, on `device`.

    Args:
        name: `fedmed-tiny`, a local folder, or a hub id.
        device: auto, cpu or cuda.
        expected_sha256: of the checkpoint's files; "" takes what is found.
        dtype: float32, or bfloat16 for half the memory.

    Raises:
        ModelError: not found, not readable, another hash, or another kind of model.
    """
    target = resolve_device(device)
    if target.type == "cuda":
        compute_in_float32()
    folder = checkpoint_path(name) or _download(name)
    found = checkpoint_sha256(folder)
    if expected_sha256 and found != expected_sha256:
        raise ModelError(
            f"base model {name!r} has sha256 {found}, expected {expected_sha256}",
            "every site needs the same checkpoint: copy the consortium's folder, or correct base_model.sha256",
        )
    model, processor = _read(name, folder, DTYPES[dtype])
    model.requires_grad_(False)
    return BaseModel(name, found, nn.Module.to(model, target, DTYPES[dtype]).eval(), processor)


def _read(name: str, folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, ProcessorMixin]:
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils.logging import disable_progress_bar

    import fedmed.models.mapper  # noqa: F401  makes its architecture known to the Auto classes
    from fedmed.models.prefixed import is_prefixed, read_prefixed

    disable_progress_bar()  # a daemon's log and a person's terminal have better things to show
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(folder, **options)
        read = read_prefixed if is_prefixed(folder) else AutoModelForImageTextToText.from_pretrained
        model = read(folder, **options, dtype=dtype, use_safetensors=True)
    except ModelError:
        raise
    # transformers raises whatever its parts raise: one place turns that into a mendable error.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"base model {name!r} cannot be loaded: {reason[0][:300]}",
            _missing_library(reason[0])
            or "expected an AutoModelForImageTextToText checkpoint in safetensors with its processor files",
        ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ModelError(
            f"base model {name!r} has a {type(processor).__name__}, expected a processor of images and text",
            "save the processor (AutoProcessor) beside the model",
        )
    return model, processor


def _missing_library(reason: str) -> str:
    """What to install, when a processor needs it: Qwen2.5-VL's and SmolVLM2's take videos too."""
    hints = {
        "torchvision": "install the torchvision release that belongs to this torch",
        "num2words": "install num2words",
    }
    return next((hint for library, hint in hints.items() if library in reason.lower()), "")


def _download(name: str) -> Path:
    """A hub id's snapshot, downloaded: configuration, tokenizer, processor and safetensors files only."""
    missing = ModelError(
        f"base model {name!r} is neither fedmed-tiny, nor a folder with a config.json, nor a hub model that this "
        "machine has or can fetch",
        "without a hub, copy the checkpoint's folder here and set base_model.name to its path",
    )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise missing
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    # No network, no such repository, no permission: the user's next step is the same.
    except Exception as error:
        raise missing from error
