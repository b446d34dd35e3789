"""Clipped sums equal autograd's, one record at a time, at noise 0: architectures x parts and kinds x physical batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest
import torch
from helpers_architectures import ALL_KINDS, BASES, PARTS, gpt2_mapper_base, mapper_base, smolvlm_base
from helpers_device import DEVICE
from helpers_training import flat, mixed_cohort, plan, random_state
from torch import Tensor

from fedmed.data.collate import Collator
from fedmed.data.manifest import Manifest
from fedmed.messages import LoraSpec
from fedmed.models.adapter import (
    State,
    adapter_parameters,
    adapter_state,
    add_adapter,
    load_adapter_state,
    remove_adapter,
)
from fedmed.models.base import BaseModel
from fedmed.models.kinds import TRAINED
from fedmed.models.prompts import adapted_processor
from fedmed.privacy.random import SecureRandom
from fedmed.training.local_round import LocalTrainer

# Pictures of several sizes: several numbers of patches and sub-images, within a record and within a patient.
SIZES = [(28, 28), (28, 56), (40, 24)]
PART = {part: LoraSpec(4, 8.0, (part,), ("all-linear",)) for part in PARTS}
ALL_LINEAR = LoraSpec(4, 8.0, PARTS, ("all-linear",))


@dataclass
class Case:
    """One architecture with one adapter on one cohort. `gradients`: of each patient, flat, float64, by autograd."""

    base: BaseModel
    cohort: Manifest
    spec: LoraSpec

    @cached_property
    def state(self) -> State:
        model = add_adapter(self.base.model, self.spec, 0)
        start = adapter_state(model)
        remove_adapter(model)
        return {key: start[key] + value for key, value in random_state(start).items()}

    @cached_property
    def gradients(self) -> list[Tensor]:
        state = self.state
        model = add_adapter(self.base.model, self.spec, 0)
        load_adapter_state(model, state)
        collator = Collator(adapted_processor(self.base, self.spec), 512)
        found = []
        for records in self.cohort.patients:
            total = flat(state).to(DEVICE) * 0
            for index in records:
                example = self.cohort.examples[index]
                batch = collator.train_batch([example], [self.cohort.images(example)]).to(DEVICE)
                model.zero_grad()
                loss = model(**batch.inputs, labels=batch.labels).loss
                if loss.requires_grad:  # a record without images does not meet an adapter of the vision side
                    loss.backward()
                parts = [p.grad if p.grad is not None else p.detach() * 0 for p in adapter_parameters(model).values()]
                total += torch.cat([part.flatten().double() for part in parts]) / len(records)
            found.append(total.cpu())
        model.zero_grad()
        remove_adapter(model)
        return found

    def expected(self, bound: float) -> Tensor:
        return torch.stack([g * min(1.0, bound / max(float(g.norm()), 1e-30)) for g in self.gradients]).sum(0)

    def error(self, physical_batch: int, bound: float, **changes: object) -> float:
        """Relative difference of the clipped sum: one step of SGD at rate 1 moves the adapter by it.

        `lot` scales the step above float32's rounding of the parameters; `changes` are the plan's.
        """
        expected, lot = self.expected(bound), min(1.0, bound)
        trainer = LocalTrainer(self.base, self.cohort, SecureRandom())
        settings = plan(bound=bound, physical_batch=physical_batch, lot=lot, lora=self.spec, trainable=TRAINED)
        trained = trainer.train(replace(settings, **changes), self.state, 0)
        trainer.close()
        found = (flat(self.state) - flat(trained)) * lot
        return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module", params=BASES)
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A base model, a cohort and the cases that were made of them."""
    cohort = mixed_cohort(tmp_path_factory.mktemp("cohort") / "site", SIZES)
    return request.param, BASES[request.param](), cohort, {}


@pytest.fixture
def case(architecture: tuple, request: pytest.FixtureRequest) -> Case:
    name, base, cohort, cases = architecture
    spec = request.param or ALL_KINDS[name]
    return cases.setdefault(spec, Case(base, cohort, spec))


@pytest.mark.parametrize("case", PART.values(), ids=PART, indirect=True)
@pytest.mark.parametrize(("physical_batch", "bound"), [(4, 1e-2)])
def test_lora_on_each_part(case: Case, physical_batch: int, bound: float) -> None:
    assert case.error(physical_batch, bound) < 1e-5


@pytest.mark.parametrize("case", [ALL_LINEAR], ids=["all-linear"], indirect=True)
@pytest.mark.parametrize(("physical_batch", "bound"), [(1, 1e6), (3, 1e-2), (64, 1e6), (64, 1e-2)])
def test_lora_on_all_parts(case: Case, physical_batch: int, bound: float) -> None:
    assert case.error(physical_batch, bound) < 1e-5


@pytest.mark.parametrize("case", [replace(ALL_LINEAR, core=True)], ids=["core"], indirect=True)
@pytest.mark.parametrize(("physical_batch", "bound"), [(1, 1e6), (3, 1e-2), (64, 1e-2)])
def test_lora_with_a_core(case: Case, physical_batch: int, bound: float) -> None:
    assert case.error(physical_batch, bound) < 1e-5
    assert case.error(physical_batch, bound, gradient_checkpointing=True) < 1e-5


@pytest.mark.parametrize("case", [None], ids=["all-kinds"], indirect=True)
@pytest.mark.parametrize(("physical_batch", "bound"), [(1, 1e-2), (3, 1e6), (4, 1e-2), (64, 1e6)])
def test_convolutions_embeddings_and_modules_trained_whole(case: Case, physical_batch: int, bound: float) -> None:
    assert case.error(physical_batch, bound) < 1e-5


VIRTUAL = {
    f"{kind}-{name}": replace(ALL_LINEAR, targets=targets, virtual_tokens=5, virtual_kind=kind)
    for kind in ("prompt", "prefix")
    for name, targets in (("alone", ()), ("beside-lora", ("embed_tokens", "k_proj", "v_proj")))
    if kind == "prefix" or name != "alone"
}


@pytest.mark.parametrize("case", VIRTUAL.values(), ids=VIRTUAL, indirect=True)
@pytest.mark.parametrize(("physical_batch", "bound"), [(1, 1e6), (3, 1e-2), (64, 1e-2)])
def test_virtual_tokens(case: Case, physical_batch: int, bound: float) -> None:
    assert case.error(physical_batch, bound) < 1e-5
    assert case.error(physical_batch, bound, gradient_checkpointing=True) < 1e-5


@pytest.mark.parametrize("case", [None], ids=["all-kinds"], indirect=True)
def test_gradient_checkpointing_changes_nothing_and_autocast_little(case: Case) -> None:
    assert case.error(64, 1e6, gradient_checkpointing=True) < 1e-5
    assert 1e-5 < case.error(64, 1e6, gradient_checkpointing=True, precision="bfloat16") < 0.05


@pytest.mark.parametrize("spec", [ALL_LINEAR, ALL_KINDS["idefics3"]], ids=["all-linear", "all-kinds"])
def test_smolvlm(spec: LoraSpec, tmp_path: Path) -> None:
    case = Case(smolvlm_base(), mixed_cohort(tmp_path / "site", SIZES), spec)
    assert case.error(3, 1e-2) < 1e-5


@pytest.mark.parametrize("base", [mapper_base, gpt2_mapper_base])
@pytest.mark.parametrize(
    "spec",
    [ALL_LINEAR, replace(ALL_LINEAR, modules_to_save=("multi_modal_projector",), virtual_tokens=3)],
    ids=["all-linear", "projector-whole"],
)
def test_mapper(base: Callable[[], BaseModel], spec: LoraSpec, tmp_path: Path) -> None:
    case = Case(base(), mixed_cohort(tmp_path / "site", SIZES), spec)
    assert case.error(3, 1e-2) < 1e-5


def test_the_cohort_is_what_it_should_be(architecture: tuple) -> None:
    """Several records and images a patient, records without images, and, but for LLaVA, rows that differ in number."""
    name, base, cohort, _ = architecture
    collator = Collator(base.processor, 512)
    rows = [collator.encode(example, cohort.images(example)).rows for example in cohort.examples]
    images = [len(example.images) for example in cohort.examples]
    assert max(map(len, cohort.patients)) == 5 and set(images) == {0, 1, 2}
    one = {count for count, pictures in zip(rows, images, strict=True) if pictures == 1}
    assert len(one) == 1 if name == "llava" else len(one) > 1
