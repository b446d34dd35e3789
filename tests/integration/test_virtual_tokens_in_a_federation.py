"""Prompt and prefix tuning through real sites: policy, ledger, private and plain rounds; what moves, and that it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.in_process import run_in_process
from fedmed.config import load_experiment
from fedmed.data.collate import Collator
from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.data.schema import Example
from fedmed.metrics.scores import Scores, score
from fedmed.models.adapter import State, load_adapter_state
from fedmed.models.base import load_base
from fedmed.models.prompts import adapted_processor
from fedmed.training.adapted import AdaptedBase
from fedmed.training.patient_gradients import example_losses

SITES = ("north", "valley")
COMMON = [
    "lora.virtual_tokens=4",
    "lora.parts=[language_model]",
    f"partition.sites=[{','.join(SITES)}]",
    "privacy.sample_rate=0.5",
    "privacy.epsilon=8",
]
FIRST = {"prompt": "embed_tokens.virtual_tokens.weight", "prefix": "layers.0.self_attn.k_proj.virtual_tokens.weight"}


def unclear(patients: int, seed: int) -> list[Example]:
    """Phantoms of hospitals that call everything unclear, which the base never does: soon learnt, whoever is drawn."""
    return [
        replace(example, answer="unclear")
        for example in phantom_examples(patients, seed, domain="hospital", split="train")
    ]


def federate(shared: AdaptedBase, overrides: Sequence[str]) -> list[State]:
    """The adapter before the first round and after each, of two hospitals with 12 patients."""
    experiment = load_experiment("pneumonia", [*COMMON, *overrides])
    sites = {name: unclear(12, seed) for seed, name in enumerate(SITES)}
    public = list(phantom_examples(1, 5, domain="public", split="test"))
    states: list[State] = []

    def keep(number: int, state: State) -> Scores:
        states.append({key: value.clone() for key, value in state.items()})
        return score([""] * len(public), public)  # the losses below say more of so few steps

    records = run_in_process(experiment, sites, public, shared, keep)
    assert all([reply.site for reply in record.replies] == list(SITES) for record in records[1:])
    return states


@pytest.fixture(scope="module")
def shared() -> AdaptedBase:
    return AdaptedBase(load_base("fedmed-tiny"))


@torch.no_grad()
def mean_loss(shared: AdaptedBase, overrides: Sequence[str], state: State, folder: Path) -> float:
    """Of other patients of the hospitals' kind."""
    spec = load_experiment("pneumonia", [*COMMON, *overrides]).lora.spec
    manifest = write_manifest(folder, unclear(12, 7))
    collator = Collator(adapted_processor(shared.base, spec), 512)
    batch = collator.train_batch(manifest.examples, [manifest.images(example) for example in manifest.examples])
    model = shared.take(spec, 0)
    load_adapter_state(model, state)
    return float(example_losses(model, batch, "float32").mean())


@pytest.mark.parametrize("kind", FIRST)
def test_without_privacy_they_learn(shared: AdaptedBase, kind: str, tmp_path: Path) -> None:
    alone = [f"lora.virtual_kind={kind}", "lora.targets=[]", "federation.method=fedavg", "privacy.mode=none"]
    states = federate(shared, [*alone, "training.rounds=3", "training.local_steps=6", "training.learning_rate=1e-1"])
    assert all("virtual_tokens" in key for key in states[0])
    before, after = (mean_loss(shared, alone, states[at], tmp_path / str(at)) for at in (0, -1))
    assert after < 0.95 * before


@pytest.mark.parametrize("kind", FIRST)
def test_with_privacy_they_and_lora_b_move_and_nothing_else(shared: AdaptedBase, kind: str) -> None:
    overrides = [f"lora.virtual_kind={kind}", "lora.targets=[q_proj]", "federation.method=ffa_lora"]
    first, last = federate(shared, [*overrides, "training.rounds=1", "training.local_steps=2"])
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    assert moved == {key for key in first if "lora_A" not in key}
    assert any(key.endswith(FIRST[kind]) for key in moved) and any("lora_B" in key for key in moved)
