"""A round is on disk whole, or it is not there."""

import json
import os

import pytest
import torch

from aggregator.rounds.store import RoundRecord, RoundStore, SiteReport
from fedmed.errors import FederationError
from fedmed.metrics.scores import Scores

SCORES = Scores(4, 0.5, None, None, 0.5, 0.5)
REPORT = SiteReport("north", 600, 10, 1.25, 1e-5, 1.25, 3.0, 1000, "f" * 64, 600.0)


def record(number: int) -> RoundRecord:
    replies = (REPORT,) if number else ()
    return RoundRecord(number, False, replies, {"valley": "not connected"}, SCORES, 1000, 900, 5.0, 3.0, "c" * 64)


def state(value: float) -> dict[str, torch.Tensor]:
    return {"m.lora_A.weight": torch.full((2, 3), value), "m.lora_B.weight": torch.full((4, 2), value)}


def filled(folder, rounds: int) -> RoundStore:
    store = RoundStore(folder)
    for number in range(rounds):
        store.commit(record(number), state(float(number)))
    return store


def test_what_is_committed_is_read_back(tmp_path):
    filled(tmp_path / "rounds", 3)
    records = RoundStore(tmp_path / "rounds").records()
    assert [item.round for item in records] == [0, 1, 2]
    assert records[1].replies == (REPORT,)
    assert records[1].scores == SCORES
    assert records[1].left_out == {"valley": "not connected"}
    assert records[2].parent_sha256 == records[1].adapter_sha256 != records[2].adapter_sha256
    assert records[0].parent_sha256 == ""
    assert torch.equal(RoundStore(tmp_path / "rounds").state(2)["m.lora_A.weight"], state(2.0)["m.lora_A.weight"])


def test_empty_store(tmp_path):
    store = RoundStore(tmp_path / "rounds")
    assert store.records() == []
    assert store.last() is None
    with pytest.raises(FederationError, match="round 0 is not in"):
        store.state(0)


def test_only_the_next_round_can_be_committed(tmp_path):
    store = filled(tmp_path, 2)
    with pytest.raises(FederationError, match="cannot commit round 1: expected round 2"):
        store.commit(record(1), state(1.0))
    with pytest.raises(FederationError, match="cannot commit round 3: expected round 2"):
        store.commit(record(3), state(3.0))


def test_torn_commit_is_ignored_and_removed(tmp_path):
    store = filled(tmp_path, 2)
    (tmp_path / ".new-002").mkdir()
    (tmp_path / ".new-002" / "adapter.safetensors").write_bytes(b"half")
    assert store.last().round == 1
    store.commit(record(2), state(2.0))
    assert store.last().round == 2
    assert not list(tmp_path.glob(".new-*"))


@pytest.mark.parametrize("damage", ["no adapter", "broken json", "other json", "no record"])
def test_broken_round_does_not_count_and_is_moved_aside(tmp_path, damage):
    store = filled(tmp_path, 3)
    path = tmp_path / "002"
    if damage == "no adapter":
        (path / "adapter.safetensors").unlink()
    elif damage == "broken json":
        (path / "round.json").write_text('{"round": 2')
    elif damage == "other json":
        (path / "round.json").write_text(json.dumps({"round": 2}))
    else:
        (path / "round.json").unlink()
    assert store.last().round == 1
    store.commit(record(2), state(2.0))
    assert store.last().round == 2
    assert list(tmp_path.glob(".broken-002-*"))


def test_changed_adapter_is_noticed(tmp_path):
    store = filled(tmp_path, 2)
    path = tmp_path / "001" / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(
        FederationError, match=r"adapter.safetensors of round 1 has SHA-256 [0-9a-f]{12}, expected [0-9a-f]{12}"
    ):
        store.state(1)


def test_a_disk_that_takes_nothing_leaves_the_rounds_whole(tmp_path):
    store = filled(tmp_path, 1)
    (tmp_path / ".new-001").write_text("a file where the folder should be")
    with pytest.raises(FederationError, match="round 1 cannot be written"):
        store.commit(record(1), state(1.0))
    assert store.last().round == 0


def test_run_id_stays_and_differs_between_runs(tmp_path):
    one, two = RoundStore(tmp_path / "a"), RoundStore(tmp_path / "b")
    assert one.run_id("demo") == RoundStore(tmp_path / "a").run_id("demo")
    assert one.run_id("demo") != two.run_id("demo")
    assert one.run_id("demo").startswith("demo-")


def test_equal_states_have_equal_files(tmp_path):
    one, two = filled(tmp_path / "a", 2), filled(tmp_path / "b", 2)
    assert one.last().adapter_sha256 == two.last().adapter_sha256
    assert os.listdir(tmp_path / "a" / "001") == os.listdir(tmp_path / "b" / "001")


def test_rounds_that_followed_a_broken_one_do_not_come_back_when_it_is_made_again(tmp_path):
    store = filled(tmp_path / "rounds", 4)
    (tmp_path / "rounds" / "001" / "round.json").write_text("{")
    assert store.last().round == 0
    store.commit(record(1), state(9.0))
    assert store.last().round == 1
    store.commit(record(2), state(10.0))
    assert [item.round for item in store.records()] == [0, 1, 2]
    assert torch.equal(store.state(2)["m.lora_A.weight"], state(10.0)["m.lora_A.weight"])
