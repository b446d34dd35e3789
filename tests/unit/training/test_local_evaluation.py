"""The incoming adapter's noisy counts: without noise they are those of a hand-written evaluation, and they leave no trace."""

import dataclasses

import pytest
import torch
from helpers_device import DEVICE
from helpers_training import plan, random_state

from fedmed.data.collate import IGNORE, Collator
from fedmed.data.manifest import Manifest, write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.errors import FederationError
from fedmed.messages import LoraSpec
from fedmed.models.base import BaseModel, load_base
from fedmed.privacy.counts import NO_COUNTS, NoisyCounts, noisy_counts
from fedmed.privacy.random import InsecureSeededRandom
from fedmed.training import local_evaluation
from fedmed.training.answers import answers_right
from fedmed.training.device_memory import PhysicalBatch
from fedmed.training.evaluate import generate_answers
from fedmed.training.local_evaluation import count_right
from fedmed.training.local_round import LocalTrainer
from fedmed.training.steps import RoundPlan

SPEC = LoraSpec(4, 8.0, ("language_model",), ("all-linear",))


def counting(noise: float = 1e-9, **changes: object) -> RoundPlan:
    """A plan that asks for counts; noise of 1e-9 is below the third digit after the point."""
    rounds = plan(lora=SPEC, physical_batch=int(changes.pop("physical_batch", 3)))  # type: ignore[call-overload]
    return dataclasses.replace(
        rounds, privacy=dataclasses.replace(rounds.privacy, metrics_noise_multiplier=noise, **changes)
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Eight patients with three records each, of which fedmed-tiny answers some."""
    examples = phantom_examples(24, 0, domain="hospital", split="train")
    grouped = [dataclasses.replace(item, patient=f"p{index // 3}") for index, item in enumerate(examples)]
    return write_manifest(tmp_path_factory.mktemp("cohort") / "site", grouped)


def by_hand(base: BaseModel, manifest: Manifest) -> list[float]:
    """Per patient: one record at a time, one token at a time."""
    collator, shares = Collator(base.processor, 2048), []
    for records in manifest.patients:
        right = 0
        for record in records:
            example = manifest.examples[record]
            batch = collator.train_batch([example], [manifest.images(example)]).to(DEVICE)
            with torch.no_grad():
                logits = base.model(**batch.inputs).logits[0]
            right += all(
                int(logits[position - 1].argmax()) == int(token)
                for position, token in enumerate(batch.labels[0])
                if int(token) != IGNORE
            )
        shares.append(right / len(records))
    return shares


def test_without_noise_the_counts_are_those_of_an_evaluation_by_hand(cohort: Manifest) -> None:
    base = load_base("fedmed-tiny", device=DEVICE.type)
    shares = by_hand(base, cohort)
    assert 0 < sum(shares) < len(shares), "the model must be right about some and wrong about some"
    assert any(0 < share < 1 for share in shares), "some patient must be half right"
    trainer = LocalTrainer(base, cohort, InsecureSeededRandom(0))
    for physical_batch in (2, 64, 0):  # 0: not chosen yet, as before a site's first step
        counts = trainer.count(counting(physical_batch=physical_batch), {}, 0)
        assert counts == noisy_counts(shares, 0.0, InsecureSeededRandom(0))


def test_an_answer_is_right_where_greedy_decoding_gives_it(cohort: Manifest) -> None:
    """One forward pass says what generating word for word would have said."""
    base, examples = load_base("fedmed-tiny", device=DEVICE.type), cohort.examples
    images = [cohort.images(example) for example in examples]
    given = generate_answers(base, base.processor, examples, images, batch_size=24, max_new_tokens=24)
    batch = Collator(base.processor).train_batch(examples, images).to(DEVICE)
    right = answers_right(base.model, batch, "float32")
    assert right.tolist() == [answer == example.answer for answer, example in zip(given, examples, strict=True)]


def test_what_is_drawn_is_drawn_as_a_step_draws(
    tiny_base: BaseModel, cohort: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each patient with the sample rate, at most k records of it: what the one event of the ledger says."""
    seen: list[int] = []

    def shares(plan_, model, examples, drawn, physical_batch, should_stop):
        seen.append(max((len(own) for own in drawn), default=0))
        return [1.0] * len(drawn)

    monkeypatch.setattr(local_evaluation, "_shares", shares)
    trainer = LocalTrainer(tiny_base, cohort, InsecureSeededRandom(3))
    spec = counting(sample_rate=0.4, records_per_patient=2, max_patients=1, physical_batch=1000)
    model = trainer._prepare(spec, {}, 0)
    patients = cohort.patients
    batch = PhysicalBatch(64)
    examples = trainer._examples_for(spec.lora)
    drawn = [count_right(spec, model, examples, patients, trainer._random, batch).patients for _ in range(300)]
    assert max(seen) == 2
    assert sum(drawn) / 300 == pytest.approx(0.4 * len(patients), abs=5 * (0.24 * len(patients) / 300) ** 0.5)
    assert max(drawn) > 1  # max_patients bounds a training step's gradients, not this


@pytest.mark.parametrize("changes", [{"noise": 0.0}, {"mode": "none"}])
def test_nothing_is_read_where_nothing_was_asked(
    tiny_base: BaseModel, cohort: Manifest, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    trainer = LocalTrainer(tiny_base, cohort, InsecureSeededRandom(0))
    monkeypatch.setattr(local_evaluation, "draw_patients", lambda *_: pytest.fail("a patient was drawn"))
    assert trainer.count(counting(**changes), {}, 0) == NO_COUNTS


def test_the_noise_is_there(tiny_base: BaseModel, cohort: Manifest) -> None:
    trainer = LocalTrainer(tiny_base, cohort, InsecureSeededRandom(0))
    first, second = (trainer.count(counting(noise=5.0), {}, 0) for _ in range(2))
    assert isinstance(first, NoisyCounts)
    assert first != second  # the model and, at sample rate 1, the draw are the same


def test_a_round_after_counting_is_the_round_without_it(tiny_base: BaseModel, cohort: Manifest) -> None:
    """Evaluating changes neither the adapter nor the optimizer: at rate 1 and noise 0 nothing else is drawn."""
    adapters = []
    for counts_first in (False, True):
        trainer = LocalTrainer(tiny_base, cohort, InsecureSeededRandom(0))
        model_plan = dataclasses.replace(counting(), physical_batch=64)
        state = random_state(trainer.train(plan(steps=1, lora=SPEC), {}, 0))
        if counts_first:
            trainer.count(model_plan, state, 0)
        adapters.append(trainer.train(model_plan, state, 0))
        trainer.close()
    for key, value in adapters[0].items():
        assert torch.allclose(value, adapters[1][key], atol=1e-6)


def test_out_of_memory_repeats_the_same_draw_in_smaller_batches(
    cohort: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, real = load_base("fedmed-tiny", device=DEVICE.type), local_evaluation.answers_right
    whole = LocalTrainer(base, cohort, InsecureSeededRandom(3)).count(counting(sample_rate=0.5), {}, 0)

    def small(model, batch, precision):
        if len(batch.labels) > 2:
            raise MemoryError
        return real(model, batch, precision)

    monkeypatch.setattr(local_evaluation, "answers_right", small)
    trainer = LocalTrainer(load_base("fedmed-tiny", device=DEVICE.type), cohort, InsecureSeededRandom(3))
    assert trainer.count(counting(sample_rate=0.5, physical_batch=8), {}, 0) == whole


def test_it_stops_between_batches(tiny_base: BaseModel, cohort: Manifest) -> None:
    trainer = LocalTrainer(tiny_base, cohort, InsecureSeededRandom(0))
    with pytest.raises(FederationError, match="stopped while it evaluated"):
        trainer.count(counting(), {}, 0, lambda: True)
