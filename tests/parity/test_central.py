"""One site without noise trains as a plain hand-written loop over all its data does."""

from __future__ import annotations

import pytest
import torch
from helpers_device import DEVICE
from helpers_training import EVERYWHERE, flat, mixed_cohort, plan

from fedmed.data.collate import Collator
from fedmed.data.manifest import Manifest
from fedmed.messages import OptimizerSpec
from fedmed.models.adapter import State, adapter_parameters, adapter_state, add_adapter, remove_adapter
from fedmed.models.base import BaseModel
from fedmed.privacy.random import SecureRandom
from fedmed.training.local_round import LocalTrainer

STEPS = 4
# Relative to the way the adapter moved. Adam divides by the root of the second moment: where that is near zero, float32
# rounding of a gradient is magnified.
TOLERANCE = {"sgd": 1e-5, "adamw": 1e-3}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return mixed_cohort(tmp_path_factory.mktemp("cohort") / "site")


def central(base: BaseModel, manifest: Manifest, optimizer: str) -> tuple[State, list[float]]:
    """Plain torch: per step the mean over patients of the mean over their records, and one optimizer step."""
    model = add_adapter(base.model, EVERYWHERE, 3)
    parameters = list(adapter_parameters(model).values())
    chosen = (
        torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.999), weight_decay=0.01)
        if optimizer == "adamw"
        else torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)
    )
    collator = Collator(base.processor, 512)
    losses = []
    for _ in range(STEPS):
        chosen.zero_grad()
        loss = torch.zeros((), device=DEVICE)
        for records in manifest.patients:
            for index in records:
                example = manifest.examples[index]
                batch = collator.train_batch([example], [manifest.images(example)]).to(DEVICE)
                own = model(**batch.inputs, labels=batch.labels).loss
                loss = loss + own / len(records) / manifest.num_patients
        loss.backward()
        chosen.step()
        losses.append(float(loss.detach()))
    state = adapter_state(model)
    remove_adapter(model)
    return state, losses


@pytest.mark.parametrize("mode", ["none", "dp"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_noiseless_site_equals_central_training(
    tiny_base: BaseModel, cohort: Manifest, optimizer: str, mode: str
) -> None:
    expected, losses = central(tiny_base, cohort, optimizer)
    assert losses[-1] < losses[0]
    spec = OptimizerSpec(optimizer, 1e-2 if optimizer == "adamw" else 0.1, 0.9, 0.01, True)
    trainer = LocalTrainer(tiny_base, cohort, SecureRandom())
    # dp without noise and with a bound that nobody reaches is the same mathematics, through the per-patient path.
    # Two rounds of two steps are four steps: the moments are kept.
    half = plan(mode, bound=1e6, steps=STEPS // 2, lot=float(cohort.num_patients), optimizer=spec, physical_batch=4)
    state = trainer.train(half, {}, 3)
    state = trainer.train(half, state, 3)
    start = trainer.train(plan(steps=0), {}, 3)
    difference = (flat(state) - flat(expected)).norm() / (flat(expected) - flat(start)).norm()
    assert float(difference) < TOLERANCE[optimizer]
