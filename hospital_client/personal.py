"""A site's own model, where a method leaves some kinds of tensors to the sites (fedsa_lora).

    task, adapter after the round -> bytes in kept/RUN -> the next round's personal tensors
                                                       -> base + adapter, merged: a model for the hospital's own use

What is kept is the whole adapter as the round left it at this site, and which base model and LoRA it belongs to, as the
safetensors' metadata: so that the model can be made later, without the consortium.

| case                                         | result                                                          |
| -------------------------------------------- | --------------------------------------------------------------- |
| the site keeps nothing of the run            | ModelError naming the runs of which it does                     |
| a file that is damaged                       | ModelError naming it; never told to the aggregator              |
| the base model is gone or is another         | ModelError, as when it is loaded                                |
| the target folder exists                     | ModelError; nothing is overwritten                              |
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedmed.errors import ModelError
from fedmed.messages import LoraSpec, TrainTask
from fedmed.models.adapter import State, adapter_state, add_adapter, load_adapter_state, remove_adapter
from fedmed.models.base import load_base
from fedmed.models.kinds import RESIDUAL, kind_of
from fedmed.models.merge import merge_adapter, save_merged
from fedmed.models.prompts import adapted_processor
from hospital_client.kept import KeptStore
from hospital_client.settings import SiteFolder

# Before the keys of whatever else goes from round to round: it is no part of the model.
ASIDE = "lost."


def pack(task: TrainTask, base_name: str, tensors: State) -> bytes:
    """What the site keeps of a round: its adapter, what else is kept (under `ASIDE`), and what they belong to."""
    facts = {
        "base_model": base_name,
        "base_sha256": task.base_sha256,
        "lora": asdict(task.lora),
        "init_seed": task.init_seed,
    }
    return save({key: tensors[key].contiguous() for key in sorted(tensors)}, {"fedmed": json.dumps(facts)})


def read_tensors(path: Path) -> State:
    """The tensors that `pack` wrote. Raises ModelError naming the file."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dictionary
    except (OSError, SafetensorError) as error:
        hint = "delete it to start from the round before, or from the first values"
        raise ModelError(f"the site's own tensors in {path} cannot be read", hint) from error


def export_model(folder: SiteFolder, run: str, target: Path) -> int:
    """Writes the site's own model as its last round of `run` left it: base and adapter, merged. Returns the round.

    Raises:
        ModelError: see the module's table.
    """
    store = KeptStore(folder.root / "kept")
    path = store.newest(run)
    kept = {} if path is None else read_tensors(path)
    state = {key: value for key, value in kept.items() if not key.startswith(ASIDE)}
    if path is None or not state:
        others = ", ".join(store.runs()) or "no run"
        raise ModelError(f"the site keeps no model of run {run!r}", f"it keeps something of: {others}")
    if target.exists():
        raise ModelError(f"{target} exists already", "choose a folder that is not there yet")
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["fedmed"])
    lora = facts["lora"] | {name: tuple(facts["lora"][name]) for name in ("parts", "targets", "modules_to_save")}
    spec = LoraSpec(**lora)
    settings = folder.settings
    base = load_base(
        folder.base_place(facts["base_model"]), expected_sha256=facts["base_sha256"], dtype=settings.base_dtype
    )
    model = add_adapter(base.model, spec, facts["init_seed"])
    load_adapter_state(model, state)
    whole = adapter_state(model) | {key: value for key, value in state.items() if kind_of(key) == RESIDUAL}
    remove_adapter(model)
    save_merged(merge_adapter(base, spec, whole), adapted_processor(base, spec), target)
    return int(path.stem)
