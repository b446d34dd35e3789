"""The real trainer behind a site: where the randomness of a round comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import plan

from fedmed.data.manifest import Manifest, read_pseudonyms
from fedmed.errors import LedgerError, ModelError, WireError
from fedmed.messages import LoraSpec, OptimizerSpec, TrainTask
from fedmed.models.adapter import State, adapter_state, add_adapter, decode_state, encode_state, state_sha256
from fedmed.models.kinds import kind_of
from hospital_client.consent import WITHDRAW, record
from hospital_client.fakes import example_task
from hospital_client.kept import Kept, KeptStore
from hospital_client.release import TaskMismatch, Trained
from hospital_client.setup import create_site
from hospital_client.trainer import SiteTrainer

SMALL = LoraSpec(2, 4.0, ("projector",), ("linear_1",))


class Hospital:
    """A site's trainer on phantoms."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        settings = {"name": folder.name, "data": str(manifest.folder), "socket": "unused.sock"}
        self.trainer = SiteTrainer(create_site(folder, settings, {}), manifest)
        model = add_adapter(self.trainer._local._base.base.model, SMALL, 0)
        self.start: State = adapter_state(model)
        model.unload()

    def withdraw_everybody(self) -> None:
        folder = self.trainer._folder
        record(folder.consent, WITHDRAW, read_pseudonyms(folder.data, folder.key), lambda message: None)

    def train(self, seed: int, number: int = 1, **changes: Any) -> bytes:
        """The payload of a round of one step, from the same start with fresh moments."""
        self.trainer._local.close()
        task = example_task(
            lora=SMALL, base_sha256=self.trainer.base_sha256, round=number, insecure_noise_seed=seed, steps=1, **changes
        )
        payload = self.trained(task).payload
        return payload if isinstance(payload, bytes) else b"".join(payload)

    def trained(self, task: TrainTask) -> Trained:
        """A round from the start, of which the task's personal kinds do not come in."""
        personal = set(task.trainable) - set(task.returned)
        sent = {key: value for key, value in self.start.items() if kind_of(key) not in personal}
        return self.trainer.prepare(task, memoryview(encode_state(sent, task.dtype)), lot_size=2.0)(lambda: False)


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory, phantom_manifest: Manifest) -> Hospital:
    return Hospital(tmp_path_factory.mktemp("sites") / "north", phantom_manifest)


def test_a_test_seed_repeats_a_round_bit_for_bit_and_nothing_else_does(north: Hospital) -> None:
    seeded = north.train(seed=7)
    assert north.train(seed=7) == seeded
    assert north.train(seed=0) == north.train(seed=0) != seeded
    assert north.train(seed=-1) != north.train(seed=-1)
    assert north.train(seed=7) == seeded  # the secure rounds between did not move it


def test_only_what_is_asked_for_leaves(north: Hospital) -> None:
    whole = decode_state(north.train(seed=3))
    half = decode_state(north.train(seed=3, returned=("lora_A",)))  # B is personal, and zero at first as in the whole
    assert set(half) == {key for key in whole if kind_of(key) == "lora_A"} < set(whole)
    assert state_sha256(half) == state_sha256({key: whole[key] for key in half})  # noise and clipping are of the whole


def test_personal_tensors_stay_here_and_are_where_the_next_round_starts(north: Hospital) -> None:
    north.trainer._local.close()
    everybody = {"mode": "none", "steps": 2, "sample_rate": 1.0, "records_per_patient": 99}
    base = north.trainer.base_sha256
    task = example_task(run="personal", lora=SMALL, base_sha256=base, returned=("lora_A",), **everybody)
    task = replace(task, optimizer=OptimizerSpec("sgd", 0.1, 0.0, 0.0, keep_state=False))
    first = north.trained(task)
    own = {key: value for key, value in decode_state(first.kept).items() if kind_of(key) == "lora_B"}
    assert own and all(bool(value.any()) for value in own.values())
    assert north.trained(task).kept == first.kept  # nothing was stored: the round starts where it did

    store = KeptStore(north.trainer._folder.root / "kept")
    store.put_aside(Kept(task.run, 1, first.kept), "a" * 64)
    assert north.trained(replace(task, round=2)).kept == first.kept  # put aside, and its result not stored
    store.take_over("a" * 64)
    second = north.trained(replace(task, round=2))
    whole = replace(plan("none", steps=2, lora=SMALL, lot=2.0, optimizer=task.optimizer), privacy=task.privacy)
    expected = north.trainer._local.train(whole, north.start | own, 0)
    torch.testing.assert_close(decode_state(second.kept), expected)
    assert north.trained(task).kept == first.kept  # of the first round there is none before

    damaged = store.before(task.run, 2)
    assert damaged is not None
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"own tensors in .* cannot be read") as caught:
        north.trained(replace(task, round=2))
    assert not isinstance(caught.value, TaskMismatch)  # the path stays here


def test_what_rounding_lost_of_a_change_comes_with_the_next_rounds_change(north: Hospital) -> None:
    north.trainer._local.close()
    base = north.trainer.base_sha256
    task = example_task(
        run="rounded", lora=SMALL, base_sha256=base, dtype="int8", mode="none", steps=2, sample_rate=1.0
    )
    task = replace(task, optimizer=OptimizerSpec("sgd", 0.1, 0.0, 0.0, keep_state=False))
    received = decode_state(encode_state(north.start, "int8"))
    whole = replace(plan("none", steps=2, lora=SMALL, lot=2.0, optimizer=task.optimizer), privacy=task.privacy)
    trained = north.trainer._local.train(whole, received, 0)
    change = {key: trained[key] - received[key] for key in trained}

    first = north.trained(task)
    sent, lost = decode_state(first.payload, "int8"), lost_of(first)
    assert any(bool(value.any()) for value in lost.values())
    torch.testing.assert_close({key: sent[key] + lost[key] for key in sent}, change)
    again = north.trained(task)
    assert (again.payload, again.kept) == (first.payload, first.kept)  # nothing was stored: lost once, not twice

    store = KeptStore(north.trainer._folder.root / "kept")
    store.put_aside(Kept(task.run, 1, first.kept), "b" * 64)
    store.take_over("b" * 64)
    second = north.trained(replace(task, round=2))
    sent, left = decode_state(second.payload, "int8"), lost_of(second)
    torch.testing.assert_close(
        {key: sent[key] + left[key] for key in sent}, {key: change[key] + lost[key] for key in sent}
    )
    assert north.trained(replace(task, run="another", round=2)).payload == first.payload

    half = north.trained(replace(task, round=2, trainable=("lora_B",), returned=("lora_B",)))
    waiting = {key: value for key, value in lost_of(half).items() if kind_of(key) == "lora_A"}
    torch.testing.assert_close(waiting, {key: value for key, value in lost.items() if kind_of(key) == "lora_A"})


def lost_of(trained: Trained) -> State:
    return {key.removeprefix("lost."): value for key, value in decode_state(trained.kept).items() if "lost." in key}


def test_bfloat16_returns_the_change_and_keeps_nothing(north: Hospital) -> None:
    """After one step without noise from B = 0 it is of B alone, however large A is."""
    task = example_task(lora=SMALL, base_sha256=north.trainer.base_sha256, dtype="bfloat16", mode="none")
    task = replace(task, privacy=replace(task.privacy, steps=1, sample_rate=1.0))
    trained = north.trained(replace(task, optimizer=OptimizerSpec("sgd", 0.1, 0.0, 0.0, keep_state=False)))
    assert trained.kept == b""
    for key, value in decode_state(trained.payload, "bfloat16").items():
        assert bool(value.any()) == (kind_of(key) == "lora_B")


def test_another_encoding_than_the_tasks_is_refused(north: Hospital) -> None:
    task = example_task(lora=SMALL, base_sha256=north.trainer.base_sha256, dtype="int8")
    with pytest.raises(WireError, match="travels as float32, expected int8"):
        north.trainer.prepare(task, memoryview(encode_state(north.start, "float32")), lot_size=2.0)


def test_the_change_of_what_was_not_sent_is_not_asked_for(north: Hospital) -> None:
    frozen = {key: value for key, value in north.start.items() if kind_of(key) == "lora_A"}
    sent = {key: value for key, value in north.start.items() if kind_of(key) == "lora_B"}
    task = example_task(
        lora=SMALL, base_sha256=north.trainer.base_sha256, dtype="int8", frozen_sha256=state_sha256(frozen)
    )
    with pytest.raises(TaskMismatch, match=r"the change of .*lora_A"):
        north.trainer.prepare(task, memoryview(encode_state(sent, "int8")), lot_size=2.0)


def test_a_task_that_sends_what_it_leaves_to_the_site_is_refused(north: Hospital) -> None:
    task = example_task(lora=SMALL, base_sha256=north.trainer.base_sha256, returned=("lora_A",))
    with pytest.raises(TaskMismatch, match=r"lora_B.* which it leaves to the site"):
        north.trainer.prepare(task, memoryview(encode_state(north.start, "float32")), lot_size=2.0)


def test_rounds_and_sites_of_one_seed_differ(tmp_path: Path, north: Hospital, phantom_manifest: Manifest) -> None:
    south = Hospital(tmp_path / "south", phantom_manifest)
    drawn = {north.train(seed=7), north.train(seed=7, number=2), south.train(seed=7)}
    assert len(drawn) == 3


def test_a_round_obeys_consent_and_is_refused_before_it_costs_anything_when_consent_cannot_be_trusted(
    tmp_path: Path, phantom_manifest: Manifest
) -> None:
    south = Hospital(tmp_path / "south", phantom_manifest)
    assert south.train(seed=-1, mode="none", sample_rate=1.0) != encode_state(south.start, "float32")
    south.withdraw_everybody()
    assert south.train(seed=-1, mode="none", sample_rate=1.0) == encode_state(south.start, "float32")
    south.trainer._folder.consent.path.write_bytes(b"")
    task = example_task(lora=SMALL, base_sha256=south.trainer.base_sha256)
    with pytest.raises(
        LedgerError, match=r"consent\.jsonl was put back from a backup"
    ):  # by prepare: nothing is reserved
        south.trainer.prepare(task, memoryview(encode_state(south.start, "float32")), lot_size=2.0)
