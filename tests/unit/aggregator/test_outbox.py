"""What the registry has still to be told: on disk before it is sent, sent once, and never waited for by the rounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aggregator.cli import app
from aggregator.registry import MemoryRegistry, Metric, MlflowRegistry, RunInfo
from aggregator.registry.database import WAIT_S
from aggregator.registry.mirror import CLOSE_S, Mirror
from aggregator.registry.outbox import Outbox, deliver, deliver_rounds, sent
from aggregator.registry.publish import build_model
from fedmed.backoff import Backoff
from fedmed.errors import RegistryError

FinishedRun = Callable[..., tuple[Path, Any]]
ROUNDS = ["round/0", "round/1", "round/2", "round/3"]


@pytest.fixture
def folder(tmp_path: Path, finished_run: FinishedRun) -> Path:
    return finished_run(tmp_path / "demo")[0]


def filled(folder: Path) -> Outbox:
    outbox = Outbox(folder)
    outbox.fill()
    return outbox


def test_every_committed_round_is_sent_once(folder: Path) -> None:
    registry = MemoryRegistry()
    outbox = filled(folder)
    assert outbox.pending() == ROUNDS
    assert deliver_rounds(outbox, registry) == 4
    assert filled(folder).pending() == [] and deliver_rounds(filled(folder), registry) == 0
    points = {(point.name, point.step): point for entry in registry.logged.values() for point in entry}
    assert points["test_accuracy", 0].value == 0.5 and points["epsilon/north", 3].value == 1.5
    assert ("bytes_up", 0) not in points and points["replies", 2].value == 1
    assert all(abs(point.at - time.time()) < 600 for point in points.values())


def test_what_a_store_that_is_down_does_not_get_waits(folder: Path) -> None:
    registry = MemoryRegistry()
    registry.down = True
    with pytest.raises(RegistryError):
        deliver_rounds(filled(folder), registry)
    assert Outbox(folder).pending() == ROUNDS
    registry.down = False
    deliver_rounds(Outbox(folder), registry)
    assert Outbox(folder).pending() == [] and len(registry.logged) == 4


def test_a_store_that_goes_down_in_the_middle_keeps_what_it_has(folder: Path) -> None:
    class Failing(MemoryRegistry):
        def log(self, run: RunInfo, entry: str, metrics: Sequence[Metric]) -> None:
            self.down = len(self.logged) == 2
            super().log(run, entry, metrics)

    registry = Failing()
    with pytest.raises(RegistryError):
        deliver_rounds(filled(folder), registry)
    assert Outbox(folder).pending() == ROUNDS[2:]


@pytest.mark.parametrize("damage", ["torn", "lost"])
def test_a_damaged_outbox_adds_nothing_to_the_registry(
    folder: Path, damage: str, mlflow_registry: MlflowRegistry
) -> None:
    outbox = filled(folder)
    deliver_rounds(outbox, mlflow_registry)
    path = folder / "outbox.jsonl"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.unlink()
    outbox = filled(folder)
    assert outbox.pending() == (["round/3"] if damage == "torn" else ROUNDS)
    deliver_rounds(outbox, mlflow_registry)
    assert filled(folder).pending() == []
    client = mlflow_registry._client()
    experiment = client.get_experiment_by_name("fedmed")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.data.tags["fedmed.run"] for run in runs}) == len(runs)
    history = client.get_metric_history(runs[0].info.run_id, "test_accuracy")
    assert [point.step for point in history] == [0, 1, 2, 3]


def test_curves_and_version_are_of_one_run(
    tmp_path: Path, finished_run: FinishedRun, mlflow_registry: MlflowRegistry
) -> None:
    folder, experiment = finished_run(tmp_path / "one", "registry.name=one-run", seed=9)
    outbox = filled(folder)
    deliver_rounds(outbox, mlflow_registry)
    build_model(folder, experiment)
    version = deliver(outbox, mlflow_registry)
    assert deliver(Outbox(folder), mlflow_registry).version == version.version == 1
    client = mlflow_registry._client()
    known = client.get_experiment_by_name("one-run")
    assert known is not None
    (run,) = client.search_runs([known.experiment_id])
    assert run.info.run_id == version.run_id and run.info.status == "FINISHED"
    assert {name for name in run.data.tags if name.startswith("fedmed.logged/")} == {
        f"fedmed.logged/{e}" for e in ROUNDS
    }
    for name in ("test_accuracy", "epsilon/north"):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
        assert steps == sorted(set(steps)) and steps[-1] == 3


@pytest.mark.parametrize(
    ("given", "of_run", "expected"),
    [
        ([], "", ""),
        ([], "http://mlflow.of.the.run", "http://mlflow.of.the.run"),
        (["--uri", "http://another"], "http://mlflow.of.the.run", "http://another"),
    ],
    ids=["beside-the-run", "of-the-run", "named"],
)
def test_replay_sends_to_the_store_of_the_run(
    tmp_path: Path,
    finished_run: FinishedRun,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    of_run: str,
    expected: str,
) -> None:
    folder, experiment = finished_run(tmp_path / "runs" / "demo", f"registry.uri='{of_run}'")
    build_model(folder, experiment)
    registry, asked = MemoryRegistry(), []

    def open_registry(uri: str, runs_dir: Path) -> MemoryRegistry:
        asked.append((uri, runs_dir))
        return registry

    monkeypatch.setattr("aggregator.registry.open_registry", open_registry)
    monkeypatch.chdir(tmp_path)  # not the folder that holds runs/
    said = [CliRunner().invoke(app, ["registry", "replay", str(folder), *given]) for _ in range(2)]
    assert [done.exit_code for done in said] == [0, 0]
    assert "sent what had waited: 4 rounds and the version" in said[0].output and "fedmed:1" in said[0].output
    assert "nothing had waited" in said[1].output and "fedmed:1" in said[1].output
    assert asked == 2 * [(expected, tmp_path / "runs")]


def test_what_was_sent_is_told_in_words() -> None:
    assert sent(["round/7", "version"]) == "sent what had waited: 1 round and the version"
    assert sent(["version"]) == "sent what had waited: the version"


def wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_rounds_appear_as_they_are_committed(folder: Path) -> None:
    registry = MemoryRegistry()
    with Mirror(folder, registry, print) as mirror:
        wait_for(lambda: len(registry.logged) == 4)
        mirror.handle({"kind": "round_committed", "round": 3})
    assert not mirror.stuck and Outbox(folder).pending() == []


def test_a_store_that_is_down_is_told_once_and_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.registry.mirror.BACKOFF", Backoff(0.01, 0.01))
    registry, said = MemoryRegistry(), []
    registry.down = True
    with Mirror(folder, registry, said.append):
        wait_for(lambda: len(said) == 1)
    assert len(said) == 1 and "cannot be reached" in said[0]
    assert Outbox(folder).pending() == ROUNDS


def test_a_store_that_hangs_holds_up_nothing(folder: Path) -> None:
    release = threading.Event()

    class Hanging(MemoryRegistry):
        def log(self, run: RunInfo, entry: str, metrics: Sequence[Metric]) -> None:
            release.wait(60)

    try:
        begin = time.monotonic()
        with Mirror(folder, Hanging(), print, close_s=0.1) as mirror:
            for number in range(4):
                mirror.handle({"kind": "round_committed", "round": number})
        assert time.monotonic() - begin < 5.0
        assert mirror.stuck  # so that nothing else is sent beside the call that hangs
        assert Outbox(folder).pending() == ROUNDS
    finally:
        release.set()


def test_a_store_that_is_slow_is_waited_for_and_that_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.registry.mirror.TELL_S", 0.05)
    said: list[str] = []

    class Slow(MemoryRegistry):
        def log(self, run: RunInfo, entry: str, metrics: Sequence[Metric]) -> None:
            time.sleep(0.1)
            super().log(run, entry, metrics)

    with Mirror(folder, Slow(), said.append, close_s=20.05) as mirror:
        pass
    assert not mirror.stuck and said == ["waiting for the registry, at most 20 s"]
    assert CLOSE_S > WAIT_S  # a first store that two runs want at once
