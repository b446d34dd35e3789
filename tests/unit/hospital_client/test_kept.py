"""What a site keeps of a round for itself is in step with the results that it gave."""

from __future__ import annotations

import os
from pathlib import Path

from helpers_kills import Tell, kill_everywhere

from fedmed.messages import TrainResult, encode, sha256_hex
from hospital_client.fakes import example_task
from hospital_client.kept import Kept, KeptStore
from hospital_client.results import ResultStore


def test_what_a_round_keeps_is_in_step_with_its_result_killed_at_every_call(tmp_path: Path) -> None:
    """The next round starts from this round's tensors exactly when this round's result can be handed over."""
    tasks = {number: encode(example_task(round=number), b"the adapter") for number in (1, 2)}
    hashes = {number: sha256_hex(frame) for number, frame in tasks.items()}

    def save(store: ResultStore, number: int) -> None:
        result = TrainResult("run-1", number, "north", hashes[number], 60, 10, 1.0, 1e-5, 1.0, "")
        store.save(hashes[number], encode(result, b"trained"), Kept("run-1", number, b"own tensors %d" % number))

    def prepare(folder: Path) -> None:
        save(ResultStore(folder / "results"), 1)

    def run(folder: Path, tell: Tell) -> None:
        save(ResultStore(folder / "results"), 2)
        tell("stored")

    def check(folder: Path, told: list[str]) -> None:
        store = ResultStore(folder / "results")
        newest = KeptStore(folder / "kept").before("run-1", 3)
        stored = store.load(hashes[2]) is not None
        assert stored or "stored" not in told
        assert newest is not None and newest.read_bytes() == b"own tensors %d" % (2 if stored else 1)
        assert {path.suffix for path in newest.parent.iterdir()} == {".safetensors"}
        assert newest.stat().st_mode & 0o777 == 0o600 and newest.parent.stat().st_mode & 0o777 == 0o700

    assert kill_everywhere(tmp_path, prepare, run, check) > 10


def test_after_the_consortium_went_back_the_next_round_starts_from_the_round_made_again(tmp_path: Path) -> None:
    store = KeptStore(tmp_path / "kept")
    for number, task in ((4, "a"), (5, "b"), (3, "c")):
        store.put_aside(Kept("run-1", number, b"round %d" % number), task)
        store.take_over(task)
    start = store.before("run-1", 4)
    assert start is not None and start.read_bytes() == b"round 3"
    assert store.newest("run-1") == start


def test_a_result_outlives_older_ones_though_the_clock_was_set_back(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results", keep=4)
    for number in range(1, 7):
        task = sha256_hex(b"task %d" % number)
        result = TrainResult("run-1", number, "north", task, 60, 10, 1.0, 1e-5, 1.0, "")
        store.save(task, encode(result, b"trained"))
        assert store.load(task) is not None
        os.utime(
            tmp_path / "results" / f"{task}.frame", (2e9 - number, 2e9 - number)
        )  # each is older than those before
    assert len(list((tmp_path / "results").iterdir())) == 4
