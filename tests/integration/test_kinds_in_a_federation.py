"""LoRA on a convolution and an embedding, and a module trained whole, through real sites: policy, ledger, DP round, wire."""

from __future__ import annotations

import pytest

from benchmarks.in_process import run_in_process
from fedmed.config import load_experiment
from fedmed.data.phantom import phantom_examples
from fedmed.models.adapter import adapter_state, add_adapter
from fedmed.models.base import load_base
from fedmed.models.kinds import PLAIN, kind_of

KEYS = [
    "lora.parts=[language_model,vision_tower]",
    "lora.targets=[patch_embedding,embed_tokens,q_proj]",
    "lora.modules_to_save=[multi_modal_projector]",
    "partition.sites=[north,valley]",
    "federation.quorum=2",
    "training.rounds=1",
    "training.local_steps=1",
    "privacy.epsilon=4",
    "privacy.sample_rate=0.2",
]


@pytest.mark.parametrize(("method", "travelling"), [("fedavg", PLAIN), ("ffa_lora", ("lora_B", "saved"))])
def test_every_kind_travels_and_is_averaged(method: str, travelling: tuple[str, ...]) -> None:
    experiment = load_experiment("pneumonia", [*KEYS, f"federation.method={method}"])
    sites = {
        name: phantom_examples(12, seed, domain="hospital", split="train")
        for seed, name in enumerate(experiment.partition.sites)
    }
    records = run_in_process(experiment, sites, phantom_examples(3, 5, domain="public", split="test"))
    assert [reply.site for reply in records[-1].replies] == list(sites) and not records[-1].left_out
    state = adapter_state(add_adapter(load_base("fedmed-tiny").model, experiment.lora.spec, 0))
    numbers = sum(value.numel() for key, value in state.items() if kind_of(key) in travelling)
    size = {"float32": 4, "bfloat16": 2}[experiment.federation.wire_dtype] * numbers * len(sites)
    assert size < records[-1].bytes_up < size + len(sites) * 20_000  # and a header that names the tensors
