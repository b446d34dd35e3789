"""With and without one patient: a round is a round either way, and what is computed of others does not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import flat, plan, random_state, record

from fedmed.data.collate import Collator
from fedmed.data.manifest import Manifest, write_manifest
from fedmed.data.schema import Example
from fedmed.errors import FederationError
from fedmed.messages import LoraSpec, PrivacySpec, Selection
from fedmed.models.adapter import State
from fedmed.models.base import BaseModel
from fedmed.privacy.counts import NoisyCounts
from fedmed.privacy.mechanism import Mechanism
from fedmed.privacy.random import InsecureSeededRandom
from fedmed.training import batches, steps
from fedmed.training.local_round import LocalTrainer
from fedmed.training.steps import RoundPlan

# So many virtual tokens, as a task may ask for, that a long answer does not fit into 512 positions any more.
CROWDED = LoraSpec(2, 4.0, ("language_model",), (), virtual_tokens=300)
LONG = replace(record(9, 9, 1, "left " * 300), answer_type="open", task="report")
ORDINARY = [record(patient, patient, 1) for patient in range(3)]


def sites(folder: Path, patient: Sequence[Example]) -> tuple[Manifest, Manifest]:
    """Without the patient, and with."""
    return write_manifest(folder / "without", ORDINARY), write_manifest(folder / "with", [*ORDINARY, *patient])


def trained(base: BaseModel, site: Manifest, settings: RoundPlan) -> torch.Tensor:
    trainer = LocalTrainer(base, site, InsecureSeededRandom(0))
    found = flat(trainer.train(settings, {}, 0))
    trainer.close()
    return found


@pytest.mark.parametrize("mode", ["dp", "none"])
@pytest.mark.parametrize("grading", ["text", "loss"])
def test_a_record_that_does_not_fit_adds_nothing(tiny_base: BaseModel, tmp_path: Path, mode: str, grading: str) -> None:
    """A round that failed would tell the consortium that somebody has it: the task chooses what fits."""
    without, with_it = sites(tmp_path, [LONG])
    most = 4 if grading == "loss" else 5
    settings = replace(
        plan(mode, lora=CROWDED, trainable=("saved",)), selection=Selection(grading=grading, max_difficulty=most)
    )
    assert torch.equal(trained(tiny_base, with_it, settings), trained(tiny_base, without, settings))


def test_of_a_patient_the_records_that_fit_are_trained(tiny_base: BaseModel, tmp_path: Path) -> None:
    short = replace(record(9, 4, 1), question="Left?")
    one, other = sites(tmp_path / "a", [short])[1], sites(tmp_path / "b", [LONG, short])[1]
    settings = plan(lora=CROWDED, trainable=("saved",))
    torch.testing.assert_close(trained(tiny_base, one, settings), trained(tiny_base, other, settings))


def test_a_record_that_does_not_fit_is_not_counted(tiny_base: BaseModel, tmp_path: Path) -> None:
    settings = plan(lora=CROWDED, trainable=("saved",))
    settings = replace(settings, privacy=replace(settings.privacy, metrics_noise_multiplier=1e-9))
    found: list[NoisyCounts] = []
    for site in sites(tmp_path, [LONG]):
        trainer = LocalTrainer(tiny_base, site, InsecureSeededRandom(0))
        found.append(trainer.count(settings, {}, 0))
        trainer.close()
    assert found[0] == found[1] and found[0].patients == 3


def test_a_loss_that_decides_is_measured_beside_no_other_patients_records(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding and the size of a batch round a loss in another way; at the edge of a grade that moves a whole patient."""
    site = sites(tmp_path, [record(9, seed, 1) for seed in (7, 8, 9)])[1]
    owners, real = [], steps.easy_by_loss

    def spy(model: Any, batch: Any, precision: str, records: Sequence[int], most: int) -> set[int]:
        owners.append([site.examples[index].patient for index in records])
        return real(model, batch, precision, records, most)

    monkeypatch.setattr(steps, "easy_by_loss", spy)
    settings = replace(plan(physical_batch=2), selection=Selection(grading="loss", max_difficulty=4))
    trained(tiny_base, site, settings)
    assert owners == [["p00"], ["p01"], ["p02"], ["p09", "p09"], ["p09"]]


def words_of(base: BaseModel, site: Manifest) -> set[int]:
    collator = Collator(base.processor, 512)
    encoded = [collator.encode(example, site.images(example)) for example in site.examples]
    return {int(word) for item in encoded for word in (*item.prompt, *item.answer)}


def overflowing(base: BaseModel, site: Manifest, words: set[int], settings: RoundPlan) -> State:
    """Tensors, all finite, with which the embedding of these words is infinite and no other is."""
    trainer = LocalTrainer(base, site, InsecureSeededRandom(0))
    state = random_state(trainer.train(replace(settings, privacy=replace(settings.privacy, steps=0)), {}, 0))
    trainer.close()
    for key in state:
        if key.endswith("lora_embedding_A"):
            state[key] = torch.zeros_like(state[key])
            state[key][:, sorted(words)] = 1e30
        if key.endswith("lora_embedding_B"):
            state[key] = torch.full_like(state[key], 1e30)
    return state


def test_a_patient_whose_numbers_overflow_is_neither_told_nor_changes_another(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    """A task chooses its tensors, and with them whose gradient is not finite. That one adds zero; the round goes on."""
    spec = LoraSpec(2, 4.0, ("language_model", "projector"), ("embed_tokens", "linear_1"))
    settings = replace(plan(lora=spec), parts=("projector",))
    without, with_it = sites(tmp_path, [replace(record(9, 9, 1), question="left")])
    words = words_of(tiny_base, with_it) - words_of(tiny_base, without)
    assert words
    state = overflowing(tiny_base, without, words, settings)
    found = []
    for site in (without, with_it):
        trainer = LocalTrainer(tiny_base, site, InsecureSeededRandom(0))
        found.append(flat(trainer.train(settings, state, 0)))
        trainer.close()
    torch.testing.assert_close(found[0], found[1])
    assert not torch.equal(found[0], flat(state))


@pytest.mark.parametrize(("precision", "size"), [("float32", 1.0), ("float32", 60.0), ("bfloat16", 1.0)])
def test_with_a_physical_batch_of_one_a_gradient_is_the_same_whoever_else_is_there(
    tiny_base: BaseModel, tmp_path: Path, precision: str, size: float
) -> None:
    """Bit for bit, by whatever tensors: for a hospital to which rounding beside others matters (docs/privacy.md)."""
    found: list[list[torch.Tensor]] = []

    def spy(gradients: torch.Tensor, sizes: Sequence[int], spec: PrivacySpec) -> torch.Tensor:
        found[-1] += list(gradients.clone())
        return Mechanism().clip(gradients, sizes, spec)

    for site in sites(tmp_path, [replace(record(9, 9, 2, "left " * 40), question="How many? " * 9)]):
        trainer = LocalTrainer(tiny_base, site, InsecureSeededRandom(0), Mechanism(clip=spy))
        start = random_state(trainer.train(plan(steps=0), {}, 0))
        state = {key: size * value for key, value in start.items()}
        found.append([])
        trainer.train(plan(physical_batch=1, lot=1e-3, precision=precision), state, 0)
        trainer.close()
    without, with_it = found
    assert len(with_it) == len(without) + 1
    assert all(torch.equal(one, other) for one, other in zip(without, with_it, strict=False))


def test_a_round_stops_while_it_looks_at_what_fits(tiny_base: BaseModel, tmp_path: Path) -> None:
    trainer = LocalTrainer(tiny_base, sites(tmp_path, [LONG])[1], InsecureSeededRandom(0))
    examples = trainer._examples_for(CROWDED)

    def stop() -> None:
        raise FederationError("stopped")

    with pytest.raises(FederationError):
        examples.fitting([[0], [1]], stop)
    assert examples.fitting([[0], [1], [3]]) == [[0], [1]]


def test_what_was_looked_at_for_its_length_is_not_encoded_again_when_it_is_trained_on(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the cache is full of other records: decoding and preparing pictures is what a site's CPU is busy with."""
    site = write_manifest(tmp_path / "site", [record(patient, 1, 1) for patient in range(4)])
    collator = Collator(tiny_base.processor)
    size = collator.encode(site.examples[0], site.images(site.examples[0])).num_bytes
    monkeypatch.setattr(batches, "CACHE_BYTES", 2 * size)
    examples, encoded, real = batches.EncodedExamples(site, collator), [], collator.encode_all

    def spy(drawn: Sequence[Example], images: Any) -> Any:
        encoded.extend(example.patient for example in drawn)
        return real(drawn, images)

    monkeypatch.setattr(collator, "encode_all", spy)
    for own in ([0, 1], [2, 3], [0, 3]):
        assert examples.fitting([own]) == [own]
        examples.batch(own)
        assert sum(item.num_bytes for item in examples._kept.values()) == 2 * size
    assert encoded == ["p00", "p01", "p02", "p03", "p00"]
