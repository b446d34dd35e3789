"""A model with prefix tuning's keys and values on disk: a checkpoint folder of data files, which only FedMed loads.

    merged/  config.json   {"model_type": "fedmed_prefix", "first_token": V, "base": {the model's own configuration}}
             model.safetensors, processor, tokenizer   as of any merged model
             prefix.safetensors                        path of a k_proj or v_proj -> float32 [n, kv width]

A plain transformers checkpoint cannot hold them: a layer's keys and values follow from what the layer below gives, and there
is no weight that makes them arbitrary at some tokens alone. The folder's own model type has other software refuse it, in the
place of answering without the prefix. See fedmed.models.virtual for what the tables do.

| found                                             | what happens                                        |
| ------------------------------------------------- | --------------------------------------------------- |
| another model type                                | an ordinary checkpoint                              |
| no prefix.safetensors, or a table of no such layer | ModelError naming it                                |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from fedmed.errors import ModelError
from fedmed.files import write_json
from fedmed.models.virtual import VirtualEmbedding, attach_tables, remove_virtual_tokens, tables_of

MODEL_TYPE = "fedmed_prefix"
TABLES = "prefix.safetensors"


class PrefixConfig(PreTrainedConfig):
    """Known to AutoConfig, which AutoTokenizer asks, and to no model class: see `read_prefixed`."""

    model_type = MODEL_TYPE


AutoConfig.register(MODEL_TYPE, PrefixConfig, exist_ok=True)


def save_prefixed(model: PreTrainedModel, folder: Path) -> None:
    """Writes a model that has tables to an existing folder; `read_prefixed` reads it."""
    tables = {path: value.cpu().contiguous() for path, value in tables_of(model).items()}
    first = next(module.words for module in model.modules() if isinstance(module, VirtualEmbedding))
    remove_virtual_tokens(model)
    try:
        model.save_pretrained(folder)
    finally:
        attach_tables(model, first, tables)
    save_file(tables, folder / TABLES, metadata={"format": "pt"})
    config = folder / "config.json"
    write_json(config, {"model_type": MODEL_TYPE, "first_token": first, "base": json.loads(config.read_text())})


def is_prefixed(folder: Path) -> bool:
    """Whether the folder holds such a model."""
    return _config(folder).get("model_type") == MODEL_TYPE


def read_prefixed(folder: Path, **options: Any) -> PreTrainedModel:
    """The model of a folder that `is_prefixed`, its tables in place.

    Args:
        options: of `from_pretrained`.

    Raises:
        ModelError: the tables are missing or do not fit.
    """
    config = _config(folder)
    own: dict[str, Any] = config["base"]
    plain: PreTrainedConfig = AutoConfig.for_model(**own)
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(folder, config=plain, **options)
    try:
        tables = load_file(folder / TABLES)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder} holds no readable {TABLES}, expected the prefix's keys and values") from error
    layers = dict(model.named_modules())
    for path, value in tables.items():
        layer: Any = layers.get(path)
        if layer is None or list(value.shape[1:]) != [getattr(layer, "out_features", None)]:
            raise ModelError(f"{TABLES}: {path} with shape {list(value.shape)} is no layer of this model")
    attach_tables(model, int(config["first_token"]), tables)
    return model


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
