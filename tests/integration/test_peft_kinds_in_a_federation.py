"""Prompt tuning, prefix tuning and the CLIP-to-prefix mapper through real sites: what moves, and that it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from benchmarks.in_process import run_in_process
from fedmed.config import Experiment, load_experiment
from fedmed.data.collate import Collator
from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.data.schema import Example
from fedmed.metrics.scores import Scores, score
from fedmed.models.adapter import State, load_adapter_state
from fedmed.models.base import load_base
from fedmed.models.mapper_build import build_mapper
from fedmed.models.prompts import adapted_processor
from fedmed.training.adapted import AdaptedBase
from fedmed.training.patient_gradients import example_losses

SITES = ("north", "valley")
COMMON = [
    "lora.parts=[language_model]",
    f"partition.sites=[{','.join(SITES)}]",
    "privacy.sample_rate=0.5",
    "privacy.epsilon=8",
]
ALONE = ["lora.virtual_tokens=4", "lora.targets=[]"]
# What is trained beside or without LoRA, and one of its tensors.
KINDS = {
    "prompt": (ALONE, "model.language_model.embed_tokens.virtual_tokens.weight"),
    "prefix": (
        [*ALONE, "lora.virtual_kind=prefix"],
        "model.language_model.layers.0.self_attn.k_proj.virtual_tokens.weight",
    ),
    "mapper": (["lora.modules_to_save=[multi_modal_projector]"], "model.multi_modal_projector.0.weight"),
}


@dataclass
class Case:
    """A base model, the keys of an experiment with one of the kinds, and a tensor of that kind."""

    shared: AdaptedBase
    keys: Sequence[str]
    own: str

    def experiment(self, *overrides: str) -> Experiment:
        base = [f"base_model.name={self.shared.base.name}"]
        return load_experiment("pneumonia", [*COMMON, *base, *self.keys, *overrides])

    def federate(self, *overrides: str) -> list[State]:
        """The adapter before the first round and after each, of two hospitals with 12 patients."""
        sites = {name: unclear(12, seed) for seed, name in enumerate(SITES)}
        public = list(phantom_examples(1, 5, domain="public", split="test"))
        states: list[State] = []

        def keep(number: int, state: State) -> Scores:
            states.append({key: value.clone() for key, value in state.items()})
            return score([""] * len(public), public)  # the losses below say more of so few steps

        records = run_in_process(self.experiment(*overrides), sites, public, self.shared, keep)
        assert all([reply.site for reply in record.replies] == list(SITES) for record in records[1:])
        return states

    @torch.no_grad()
    def mean_loss(self, state: State, folder: Path) -> float:
        """Of other patients of the hospitals' kind."""
        spec = self.experiment().lora.spec
        manifest = write_manifest(folder, unclear(12, 7))
        collator = Collator(adapted_processor(self.shared.base, spec), 512)
        batch = collator.train_batch(manifest.examples, [manifest.images(example) for example in manifest.examples])
        model = self.shared.take(spec, 0)
        load_adapter_state(model, state)
        return float(example_losses(model, batch, "float32").mean())


def unclear(patients: int, seed: int) -> list[Example]:
    """Phantoms of hospitals that call everything unclear, which the base never does: soon learnt, whoever is drawn."""
    return [
        replace(example, answer="unclear")
        for example in phantom_examples(patients, seed, domain="hospital", split="train")
    ]


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name = "fedmed-tiny"
    if request.param == "mapper":
        name = str(tmp_path_factory.mktemp("bases") / "mapper")
        build_mapper("fedmed-tiny", "fedmed-tiny", Path(name), sizes=[32])
    return Case(AdaptedBase(load_base(name)), *KINDS[request.param])


def test_without_privacy_it_learns(case: Case, tmp_path: Path) -> None:
    plain = ["privacy.mode=none", "federation.method=fedavg", "training.learning_rate=1e-1"]
    states = case.federate(*plain, "training.rounds=3", "training.local_steps=6")
    before, after = (case.mean_loss(states[at], tmp_path / str(at)) for at in (0, -1))
    assert after < 0.95 * before


def test_with_privacy_it_and_lora_b_move_and_nothing_else(case: Case) -> None:
    overrides = ["lora.targets=[q_proj]", "federation.method=ffa_lora", "training.rounds=1", "training.local_steps=2"]
    first, last = case.federate(*overrides)
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    assert moved == {key for key in first if "lora_A" not in key}
    assert any("lora_B" in key for key in moved)
    assert case.own in moved
