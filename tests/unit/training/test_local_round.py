"""The local round: draws, noise, moments, frozen tensors, stopping and refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_training import BOTH, EVERYWHERE, flat, mixed_cohort, plan, random_state, record
from scipy import stats

from fedmed.data.manifest import Manifest, write_manifest
from fedmed.data.schema import Example
from fedmed.errors import FederationError, ModelError, PrivacyError
from fedmed.messages import LoraSpec, OptimizerSpec
from fedmed.models.adapter import adapter_state, add_adapter, remove_adapter, state_sha256
from fedmed.models.base import BaseModel
from fedmed.privacy.random import InsecureSeededRandom, SecureRandom
from fedmed.training.batches import Group, chunks, pack
from fedmed.training.local_round import LocalTrainer

SMALL = LoraSpec(2, 4.0, ("projector", "language_model"), ("linear_1", "q_proj"))
ADAM = OptimizerSpec("adamw", 1e-2, 0.9, 0.0, True)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return mixed_cohort(tmp_path_factory.mktemp("cohort") / "site")


@pytest.fixture
def trainer(tiny_base: BaseModel, cohort: Manifest) -> LocalTrainer:
    return LocalTrainer(tiny_base, cohort, SecureRandom())


def test_an_empty_draw_is_a_step_of_noise_with_the_right_deviation(trainer: LocalTrainer) -> None:
    noise, bound, lot = 2.0, 0.5, 4.0
    start = trainer.train(plan(steps=0), {}, 0)
    trained = trainer.train(plan(noise=noise, bound=bound, rate=0.0, lot=lot), {}, 0)
    drawn = (flat(trained) - flat(start)) / (noise * bound / lot)
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=drawn.numel())
    assert low < float(drawn.square().sum()) < high


def test_noise_differs_from_call_to_call_whatever_the_seed(trainer: LocalTrainer) -> None:
    settings = plan(noise=1.0, rate=0.0, lora=SMALL)
    assert state_sha256(trainer.train(settings, {}, 0)) != state_sha256(trainer.train(settings, {}, 0))


def test_steps_add_their_noise(trainer: LocalTrainer) -> None:
    start = trainer.train(plan(steps=0), {}, 0)
    trained = trainer.train(plan(noise=1.0, rate=0.0, steps=9), {}, 0)
    drawn = (flat(trained) - flat(start)) / math.sqrt(9)
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=drawn.numel())
    assert low < float(drawn.square().sum()) < high


def test_a_seeded_test_source_repeats_a_round(tiny_base: BaseModel, cohort: Manifest) -> None:
    hashes = set()
    for _ in range(2):
        trainer = LocalTrainer(tiny_base, cohort, InsecureSeededRandom(1))
        hashes.add(state_sha256(trainer.train(plan(noise=1.0, rate=0.5, steps=2, records=2, lora=SMALL), {}, 0)))
        trainer.close()
    assert len(hashes) == 1


def test_records_are_capped(tiny_base: BaseModel, tmp_path: Path) -> None:
    """With a cap of one, a patient of three records moves the model exactly as one of those records alone does."""
    records = [record(0, seed, 1, answer) for seed, answer in enumerate(["yes", "no", "two"])]

    def state_of(name: str, chosen: list[Example]) -> torch.Tensor:
        trainer = LocalTrainer(tiny_base, write_manifest(tmp_path / name, chosen), SecureRandom())
        state = flat(trainer.train(plan(records=1, bound=1e6, lora=SMALL), {}, 0))
        trainer.close()
        return state

    capped = state_of("all", records)
    alone = [state_of(str(index), [own]) for index, own in enumerate(records)]
    assert len({hash(tuple(state.tolist())) for state in alone}) == 3
    assert sum(torch.allclose(capped, state, rtol=0, atol=1e-7) for state in alone) == 1


def test_moments_are_kept_within_a_run_and_dropped_between(trainer: LocalTrainer) -> None:
    def second_round(run: str, keep: bool = True) -> str:
        settings = plan("none", optimizer=replace(ADAM, keep_state=keep), lora=SMALL, run=run)
        first = trainer.train(settings, {}, 0)
        return state_sha256(trainer.train(settings, first, 0))

    def after_other_run() -> str:
        settings = plan("none", optimizer=ADAM, lora=SMALL, run="a")
        first = trainer.train(settings, {}, 0)
        return state_sha256(trainer.train(replace(settings, run="b"), first, 0))

    kept, dropped = second_round("x"), second_round("y", keep=False)
    assert kept != dropped
    assert after_other_run() == dropped


def test_a_method_that_alternates_keeps_the_moments_of_each_half(trainer: LocalTrainer) -> None:
    """Rounds of B, A, B: the second of B goes on with B's moments, which a round of A neither uses nor drops."""
    halves = {kind: plan("none", optimizer=ADAM, lora=SMALL, trainable=(kind,)) for kind in ("lora_B", "lora_A")}
    start = trainer.train(plan(steps=0, lora=SMALL), {}, 0)
    first = start | trainer.train(halves["lora_B"], start, 0)
    trainer.train(halves["lora_A"], first, 0)
    alternated = state_sha256(trainer.train(halves["lora_B"], first, 0))
    trainer.close()
    trainer.train(halves["lora_B"], start, 0)
    assert state_sha256(trainer.train(halves["lora_B"], first, 0)) == alternated
    trainer.close()
    assert state_sha256(trainer.train(halves["lora_B"], first, 0)) != alternated


def test_moments_of_an_earlier_run_are_let_go(trainer: LocalTrainer) -> None:
    for run in ("a", "b", "c"):
        for kind in BOTH:
            trainer.train(plan("none", optimizer=ADAM, lora=SMALL, trainable=(kind,), run=run), {}, 0)
    assert len(trainer._optimizers) == len(BOTH)


def test_fedprox_is_the_gradient_of_the_penalised_loss(trainer: LocalTrainer) -> None:
    """Two steps of SGD at rate 1: the first starts where the pull is 0, the second is pulled back by mu (w1 - w0)."""
    mu = 0.25
    settings = plan("none", lora=SMALL, steps=2)
    pulled = replace(settings, optimizer=replace(settings.optimizer, proximal_mu=mu))
    start = random_state(trainer.train(plan(steps=0, lora=SMALL), {}, 0))
    one = flat(trainer.train(replace(settings, privacy=replace(settings.privacy, steps=1)), start, 0))
    free, found = flat(trainer.train(settings, start, 0)), flat(trainer.train(pulled, start, 0))
    expected = free - mu * (one - flat(start))
    assert float((found - expected).norm()) < 1e-5 * float((expected - flat(start)).norm())


def test_a_strong_pull_keeps_a_noisy_adapter_where_it_came_in(trainer: LocalTrainer) -> None:
    sgd = OptimizerSpec("sgd", 0.01, 0.0, 0.0, True)
    settings = plan(noise=1.0, rate=0.0, steps=30, lora=SMALL, optimizer=sgd)
    start = flat(trainer.train(plan(steps=0, lora=SMALL), {}, 0))
    free = float((flat(trainer.train(settings, {}, 0)) - start).norm())
    pulled = replace(settings, optimizer=replace(sgd, proximal_mu=100.0))  # each step undoes the one before
    assert float((flat(trainer.train(pulled, {}, 0)) - start).norm()) < 0.4 * free  # one step's noise, not that of 30


@pytest.mark.parametrize("name", ["adamw", "adam_bc", "sgd"])
def test_a_schedule_changes_the_rate_and_keeps_the_moments(trainer: LocalTrainer, name: str) -> None:
    """Two rounds at two rates are two steps of one optimizer whose rate was changed between them."""
    spec = OptimizerSpec(name, 1e-2, 0.9, 0.0, True)
    first = plan("none", optimizer=spec, lora=SMALL)
    second = replace(first, optimizer=replace(spec, learning_rate=1e-3))
    start = flat(trainer.train(plan(steps=0, lora=SMALL), {}, 0))
    middle = trainer.train(first, {}, 0)
    kept = flat(trainer.train(second, middle, 0)) - flat(middle)
    trainer.close()
    alone = flat(trainer.train(second, middle, 0)) - flat(middle)
    assert float(kept.norm()) < 0.5 * float((flat(middle) - start).norm())  # the new rate
    assert not torch.allclose(kept, alone)  # the old moments


def test_a_failed_round_leaves_no_moments(trainer: LocalTrainer) -> None:
    settings = plan("none", optimizer=ADAM, lora=SMALL, steps=2)
    calls = iter([False, True])
    with pytest.raises(FederationError, match="stopped"):
        trainer.train(settings, {}, 0, should_stop=lambda: next(calls))
    after = state_sha256(trainer.train(settings, {}, 0))
    trainer.close()
    assert after == state_sha256(trainer.train(settings, {}, 0))


def test_frozen_tensors_follow_from_the_seed_and_are_checked(tiny_base: BaseModel, cohort: Manifest) -> None:
    model = add_adapter(tiny_base.model, SMALL, 9)
    frozen, travelling = adapter_state(model, ("lora_A",)), adapter_state(model, ("lora_B",))
    remove_adapter(model)
    trainer = LocalTrainer(tiny_base, cohort, SecureRandom())
    settings = replace(plan(lora=SMALL, trainable=("lora_B",)), frozen_sha256=state_sha256(frozen))
    assert set(trainer.train(settings, travelling, 9)) == set(travelling)
    with pytest.raises(ModelError, match="init_seed"):
        trainer.train(settings, travelling, 10)


def test_personal_tensors_are_the_sites_own_and_not_checked_against_the_seed(trainer: LocalTrainer) -> None:
    """As FedSA-LoRA: A comes in, B is the site's. A first round starts at the seed's B, a later one where the site was."""
    settings = replace(plan(lora=SMALL), personal=("lora_B",), frozen_sha256=state_sha256({}))
    start = trainer.train(plan(steps=0, lora=SMALL), {}, 0)
    incoming = {key: value for key, value in start.items() if key.endswith("lora_A.weight")}
    assert trainer.check(settings, incoming, 0) == []
    first = trainer.train(settings, incoming, 0)
    assert state_sha256(first) == state_sha256(trainer.train(plan(lora=SMALL), start, 0))
    own = {key: value for key, value in first.items() if key.endswith("lora_B.weight")}
    later = trainer.train(settings, incoming | own, 0)
    assert state_sha256(later) == state_sha256(trainer.train(plan(lora=SMALL), start | own, 0))
    assert state_sha256(later) != state_sha256(first)


def test_another_adapter_shape_replaces_the_first(trainer: LocalTrainer) -> None:
    small = trainer.train(plan(steps=0, lora=SMALL), {}, 0)
    large = trainer.train(plan(steps=0), {}, 0)
    assert len(small) < len(large)
    assert state_sha256(trainer.train(plan(steps=0, lora=SMALL), {}, 0)) == state_sha256(small)


def test_a_foreign_state_is_refused(trainer: LocalTrainer) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        trainer.train(plan(), {"nowhere.lora_A.weight": torch.zeros(2, 2)}, 0)


def test_nobody_drawn_without_privacy_changes_nothing(trainer: LocalTrainer) -> None:
    start = trainer.train(plan("none", steps=0), {}, 0)
    assert state_sha256(trainer.train(plan("none", rate=0.0), {}, 0)) == state_sha256(start)


def test_autocast_is_close_to_float32(trainer: LocalTrainer) -> None:
    exact = trainer.train(plan(bound=0.1, lot=0.1), {}, 0)
    start = trainer.train(plan(steps=0), {}, 0)
    rough = trainer.train(plan(bound=0.1, lot=0.1, precision="bfloat16"), {}, 0)
    moved = flat(exact) - flat(start)
    assert float((flat(rough) - flat(exact)).norm()) < 0.2 * float(moved.norm())
    assert {value.dtype for value in rough.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"lot": 0.0}, PrivacyError),
        ({"mode": "maybe"}, PrivacyError),
        ({"physical_batch": -1}, ModelError),
        ({"precision": "float16"}, ModelError),
        ({"optimizer": OptimizerSpec("lion", 0.1, 0.9, 0.0, True)}, ModelError),
    ],
)
def test_a_plan_out_of_range_is_refused(change: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        plan(**change)  # type: ignore[arg-type]


def test_examples_are_read_once(tiny_base: BaseModel, cohort: Manifest, tmp_path: Path) -> None:
    class Counting(Manifest):
        reads = 0

        def images(self, example):  # type: ignore[no-untyped-def]
            Counting.reads += 1
            return super().images(example)

    counting = Counting(cohort.folder, cohort.examples, cohort.sha256, 0)
    LocalTrainer(tiny_base, counting, SecureRandom()).train(plan("none", steps=3, lora=SMALL), {}, 0)
    assert Counting.reads == len(cohort.examples)


def test_packing_keeps_patients_whole() -> None:
    assert pack([[0, 1], [2], [3, 4, 5], [6]], 3) == [Group(((2,), (0, 1))), Group(((3, 4, 5),)), Group(((6,),))]
    assert pack([[0, 1], [2], [3, 4], [5]], 6) == [Group(((2,), (5,), (0, 1), (3, 4)))]
    assert pack([], 3) == []
    (large,) = pack([[1, 2, 3, 4, 5]], 2)
    parts = list(chunks(large, 2))
    assert [part.records for part in parts] == [[1, 2], [3, 4], [5]]
    assert all(float(weight) == pytest.approx(0.2) for part in parts for weight in part.weight)
    assert EVERYWHERE.parts  # the shared spec covers all parts
