"""Memory: a step that runs out of it repeats its draw with half the physical batch; checkpointing changes no number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers_training import EVERYWHERE, flat, mixed_cohort, plan, random_state

from fedmed.data.collate import Batch
from fedmed.data.manifest import Manifest
from fedmed.errors import ModelError
from fedmed.messages import PrivacySpec
from fedmed.models.adapter import adapter_state, add_adapter
from fedmed.models.base import BaseModel
from fedmed.privacy.mechanism import Mechanism
from fedmed.privacy.random import InsecureSeededRandom, RandomSource, SecureRandom
from fedmed.training import patient_gradients, steps
from fedmed.training.device_memory import MOST, PhysicalBatch, free_bytes, is_out_of_memory, kept_bytes
from fedmed.training.local_round import LocalTrainer


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return mixed_cohort(tmp_path_factory.mktemp("cohort") / "site")


@pytest.fixture
def device_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the device hold so many records in a forward pass, and no more."""
    losses = patient_gradients.example_losses

    def shrink(limit: int) -> None:
        def limited(model: torch.nn.Module, batch: Batch, precision: str) -> torch.Tensor:
            if len(batch.labels) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return losses(model, batch, precision)

        for module in (steps, patient_gradients):
            monkeypatch.setattr(module, "example_losses", limited)

    return shrink


@pytest.mark.parametrize("mode", ["dp", "none"])
def test_out_of_memory_repeats_the_draw_with_half_the_batch(
    tiny_base: BaseModel, cohort: Manifest, device_of: Callable[[int], None], mode: str
) -> None:
    noises: list[int] = []

    def counted(total: torch.Tensor, spec: PrivacySpec, random: RandomSource) -> torch.Tensor:
        noises.append(total.numel())
        return Mechanism().noise(total, spec, random)

    settings = plan(mode, noise=0.5, rate=0.6, steps=3, lot=4.0, physical_batch=8)
    results = []
    for limit in (64, 3):
        device_of(limit)
        trainer = LocalTrainer(tiny_base, cohort, InsecureSeededRandom(1), Mechanism(noise=counted))
        results.append(flat(trainer.train(settings, {}, 0)))
        trainer.close()
    assert float((results[0] - results[1]).abs().max()) < 1e-5
    assert len(noises) == (6 if mode == "dp" else 0)  # once a step and run, however often a step was begun anew


def test_a_single_record_that_does_not_fit_is_refused(
    tiny_base: BaseModel, cohort: Manifest, device_of: Callable[[int], None]
) -> None:
    device_of(0)
    with pytest.raises(ModelError, match="single record"):
        LocalTrainer(tiny_base, cohort, SecureRandom()).train(plan(physical_batch=4), {}, 0)


def test_this_machines_allocator_is_understood() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 46)
    assert is_out_of_memory(error.value)


def test_other_errors_are_not_taken_for_memory(tiny_base: BaseModel, cohort: Manifest) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        LocalTrainer(tiny_base, cohort, SecureRandom(), Mechanism(clip=broken)).train(plan(), {}, 0)


def test_the_batch_is_chosen_by_memory(tiny_base: BaseModel, cohort: Manifest) -> None:
    trainer = LocalTrainer(tiny_base, cohort, SecureRandom())
    chosen = trainer.train(plan(bound=1e-2, lot=1e-2, physical_batch=0), {}, 0)
    given = trainer.train(plan(bound=1e-2, lot=1e-2, physical_batch=4), {}, 0)
    assert float((flat(chosen) - flat(given)).norm() / flat(given).norm()) < 1e-5
    batch = PhysicalBatch(0)
    batch.choose(free_bytes(torch.device("cpu")) // 20, torch.device("cpu"))
    assert batch.size in (4, 8)  # 40 % of the free memory at a twentieth each, others may take some meanwhile
    batch.choose(1, torch.device("cpu"))
    assert batch.size == MOST


def test_what_a_forward_pass_keeps_is_counted_once() -> None:
    layer = torch.nn.Linear(10, 10)
    values = torch.randn(100, 10, requires_grad=True)
    kept = kept_bytes(lambda: (layer(values).exp() + layer(values)).sum(), layer)
    assert kept == 4 * 100 * 10 * 2  # the input once, and what exp keeps; the weight is the model's


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_changes_no_number(tiny_base: BaseModel, cohort: Manifest, precision: str) -> None:
    model = add_adapter(tiny_base.model, EVERYWHERE, 0)
    state = random_state(adapter_state(model))
    model.unload()
    trainer = LocalTrainer(tiny_base, cohort, SecureRandom())
    settings = plan(bound=1e-2, lot=1e-2, physical_batch=4, precision=precision)
    plain = trainer.train(settings, state, 0)
    again = trainer.train(replace(settings, gradient_checkpointing=True), state, 0)
    moved = (flat(plain) - flat(state)).norm()
    assert float((flat(plain) - flat(again)).norm() / moved) < (1e-5 if precision == "float32" else 1e-3)
    assert not any(module.training for module in tiny_base.model.modules())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_base_in_bfloat16_keeps_its_adapter_in_float32(
    tiny_base: BaseModel, cohort: Manifest, precision: str
) -> None:
    half = BaseModel("half", "0" * 64, tiny_base.model.to(torch.bfloat16), tiny_base.processor)
    trained = LocalTrainer(half, cohort, SecureRandom()).train(
        plan(bound=1e-2, lot=1.0, noise=1.0, precision=precision), {}, 0
    )
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert all(bool(value.isfinite().all()) for value in trained.values())


def test_where_memory_is_short_of_two_patients_no_batch_holds_two(
    tiny_base: BaseModel, cohort: Manifest, device_of: Callable[[int], None]
) -> None:
    """That patients are kept apart in a batch is compared on three made-up records; it cannot be where one alone fits."""
    device_of(1)
    trainer = LocalTrainer(tiny_base, cohort, SecureRandom())
    trainer.check(plan(physical_batch=8), {}, 0)
    assert trainer._batch_for(plan(physical_batch=8)).size == 1


def test_patients_are_shown_to_be_kept_apart_with_checkpointing_where_the_round_has_it(
    tiny_base: BaseModel, cohort: Manifest
) -> None:
    """A model that fits with it alone would be refused as too large, or get batches of one record for good."""
    seen: list[bool] = []
    layer = tiny_base.model.get_submodule("model.language_model.layers.0")
    layer.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    settings = replace(plan(), gradient_checkpointing=True)
    LocalTrainer(tiny_base, cohort, SecureRandom()).check(settings, {}, 0)
    assert seen and all(seen)
    assert not any(module.training for module in tiny_base.model.modules())
