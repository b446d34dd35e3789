"""Clipped sums of per-patient gradients equal those of autograd, one patient at a time, at noise 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers_device import DEVICE
from helpers_training import BOTH, EVERYWHERE, cases_among_ordinary_records, flat, mixed_cohort, plan, random_state

from fedmed.data.collate import Collator
from fedmed.data.manifest import Manifest, write_manifest
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
from fedmed.privacy.random import SecureRandom
from fedmed.training.local_round import LocalTrainer


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return mixed_cohort(tmp_path_factory.mktemp("cohort") / "site")


def patient_gradients(base: BaseModel, manifest: Manifest, spec: LoraSpec, state: State) -> list[torch.Tensor]:
    """Reference: the model's own loss, one record at a time, averaged over each patient's records. Flat, float64."""
    model = add_adapter(base.model, spec, 0)
    load_adapter_state(model, state)
    parameters = adapter_parameters(model)
    collator = Collator(base.processor, 512)
    gradients = []
    for records in manifest.patients:
        model.zero_grad()
        for index in records:
            example = manifest.examples[index]
            batch = collator.train_batch([example], [manifest.images(example)]).to(DEVICE)
            loss = model(**batch.inputs, labels=batch.labels).loss / len(records)
            if loss.requires_grad:  # a record without images does not meet an adapter of the vision side
                loss.backward()
        gradients.append(
            torch.cat([(p.grad if p.grad is not None else p * 0).flatten().double() for p in parameters.values()]).cpu()
        )
    remove_adapter(model)
    return gradients


def clipped(gradients: list[torch.Tensor], bound: float) -> torch.Tensor:
    return torch.stack([g * min(1.0, bound / max(float(g.norm()), 1e-30)) for g in gradients]).sum(0)


def start_state(base: BaseModel, spec: LoraSpec) -> State:
    model = add_adapter(base.model, spec, 0)
    state = random_state(adapter_state(model))
    remove_adapter(model)
    return state


@pytest.mark.parametrize("physical_batch", [1, 3, 4, 64])
@pytest.mark.parametrize("bound", [1e-2, 1e6])
def test_equal_autograd(tiny_base: BaseModel, cohort: Manifest, physical_batch: int, bound: float) -> None:
    state = start_state(tiny_base, EVERYWHERE)
    gradients = patient_gradients(tiny_base, cohort, EVERYWHERE, state)
    expected = clipped(gradients, bound)
    # lot_size scales the step up, so that float32 parameters do not round the sum away
    lot = 1.0 if bound > 1 else 1e-2
    trainer = LocalTrainer(tiny_base, cohort, SecureRandom())
    trained = trainer.train(plan(bound=bound, physical_batch=physical_batch, lot=lot), state, 0)
    found = (flat(state) - flat(trained)) * lot
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("physical_batch", [1, 3, 64])
@pytest.mark.parametrize("bound", [1e-2, 1e6])
def test_equal_autograd_on_cases_and_conversations(
    tiny_base: BaseModel, tmp_path: Path, physical_batch: int, bound: float
) -> None:
    """Several images at marks, tables as text and histories, among ordinary records: each patient is clipped by itself."""
    cohort = cases_among_ordinary_records(tmp_path / "site")
    state = start_state(tiny_base, EVERYWHERE)
    gradients = patient_gradients(tiny_base, cohort, EVERYWHERE, state)
    assert len(gradients) == 5 and min(float(gradient.norm()) for gradient in gradients) > 1e-2
    expected = clipped(gradients, bound)
    lot = 1.0 if bound > 1 else 1e-2
    trainer = LocalTrainer(tiny_base, cohort, SecureRandom())
    trained = trainer.train(plan(bound=bound, physical_batch=physical_batch, lot=lot), state, 0)
    found = (flat(state) - flat(trained)) * lot
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("part", EVERYWHERE.parts)
def test_equal_autograd_for_each_part(tiny_base: BaseModel, cohort: Manifest, part: str) -> None:
    spec = LoraSpec(4, 8.0, (part,), ("all-linear",))
    state = start_state(tiny_base, spec)
    expected = clipped(patient_gradients(tiny_base, cohort, spec, state), 0.05)
    trained = LocalTrainer(tiny_base, cohort, SecureRandom()).train(
        plan(bound=0.05, physical_batch=4, lot=0.05, lora=spec), state, 0
    )
    found = (flat(state) - flat(trained)) * 0.05
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_only_trainable_tensors_are_clipped_and_sent(tiny_base: BaseModel, cohort: Manifest) -> None:
    state = start_state(tiny_base, EVERYWHERE)
    trainer = LocalTrainer(tiny_base, cohort, SecureRandom())
    trained = trainer.train(plan(trainable=("lora_B",), bound=1e-2, lot=1e-2), state, 0)
    assert trained and all(key.endswith("lora_B.weight") for key in trained)
    second = trainer.train(plan(trainable=BOTH, bound=1e-2, lot=1e-2), state, 0)
    assert set(second) == set(state)


def test_adding_a_patient_moves_the_sum_by_at_most_the_bound(
    tiny_base: BaseModel, cohort: Manifest, tmp_path: Path
) -> None:
    bound, lot = 0.05, 0.05
    state = start_state(tiny_base, EVERYWHERE)
    sums = []
    for left_out in (None, "p04"):  # the patient with five records
        kept = [example for example in cohort.examples if example.patient != left_out]
        loaded = [
            example.__class__(
                example.patient,
                tuple(ref.__class__(path=ref.path) for ref in example.images),
                example.question,
                example.answer,
                example.answer_type,
                example.task,
                example.source,
            )
            for example in kept
        ]
        manifest = write_manifest(tmp_path / str(left_out), loaded, images_from=cohort.folder)
        trained = LocalTrainer(tiny_base, manifest, SecureRandom())
        sums.append((flat(state) - flat(trained.train(plan(bound=bound, lot=lot, physical_batch=4), state, 0))) * lot)
        trained.close()
    moved = float((sums[0] - sums[1]).norm())
    assert 0.5 * bound < moved <= bound * (1 + 1e-5)


def test_a_layer_without_gradient_is_zero_and_keeps_nothing(tiny_base: BaseModel, cohort: Manifest) -> None:
    tiny_base.model.config.vision_feature_layer = -2  # the last vision layer runs, and nothing uses it
    state = start_state(tiny_base, EVERYWHERE)
    expected = clipped(patient_gradients(tiny_base, cohort, EVERYWHERE, state), 1e-2)
    trainer = LocalTrainer(tiny_base, cohort, SecureRandom())
    trained = trainer.train(plan(bound=1e-2, lot=1e-2, physical_batch=4), state, 0)
    found = (flat(state) - flat(trained)) * 1e-2
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert not any("activations" in vars(module) for module in tiny_base.model.modules())


def test_no_traces_are_left(tiny_base: BaseModel, cohort: Manifest) -> None:
    trainer = LocalTrainer(tiny_base, cohort, SecureRandom())
    trainer.train(plan(), {}, 0)
    for parameter in tiny_base.model.parameters():
        assert parameter.grad is None
        assert not hasattr(parameter, "grad_sample")
    assert not any(module._backward_hooks for module in tiny_base.model.modules())
    assert not any("activations" in vars(module) for module in tiny_base.model.modules())
