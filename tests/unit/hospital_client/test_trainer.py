"""The real trainer behind a site: where the randomness of a round comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedmed.data.manifest import Manifest, read_pseudonyms
from fedmed.errors import LedgerError
from fedmed.messages import LoraSpec
from fedmed.models.adapter import State, adapter_state, add_adapter, decode_state, encode_state, state_sha256
from fedmed.models.kinds import kind_of
from hospital_client.consent import WITHDRAW, record
from hospital_client.fakes import example_task
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
        payload = memoryview(encode_state(self.start, "float32"))
        return self.trainer.prepare(task, payload, lot_size=2.0)(lambda: False).payload


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
    half = decode_state(north.train(seed=3, returned=("lora_A",)))
    assert set(half) == {key for key in whole if kind_of(key) == "lora_A"} < set(whole)
    assert state_sha256(half) == state_sha256({key: whole[key] for key in half})  # noise and clipping are of the whole


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
