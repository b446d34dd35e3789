"""Seeing a run through: what is started again, how often, and what is told at once. The server app here is a script."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from aggregator.runs import supervise
from aggregator.runs.orphan import ended, flower_ancestors
from aggregator.runs.supervise import Target, see_through
from aggregator.superlink.flower_runs import Run
from aggregator.watching.events import EventLog, read_events
from aggregator.watching.live import LiveView
from fedmed.backoff import Backoff, Retries
from fedmed.config import load_experiment
from fedmed.errors import FederationError

SERVE = """
import sys
from pathlib import Path
from aggregator.watching.events import EventLog
from aggregator.runs.locks import SERVER_LOCK, hold
folder, what = Path(sys.argv[1]), sys.argv[2]
with hold(folder / SERVER_LOCK, "x"):
    if what == "round":
        number = len(list((folder / "rounds").glob("[0-9]*")))
        (folder / "rounds" / f"{number:03d}").mkdir()
    if what in ("finished", "failed"):
        EventLog(folder / "events.jsonl").emit(what, message="the disk is full", hint="make room")
"""


class Lab:
    """A run whose server app, each time it is submitted, does the next thing of a list."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, plan: list[str]) -> None:
        self.folder, self.plan, self.submitted, self.stopped = folder, plan, 0, 0
        (folder / "rounds").mkdir()
        self.stream = io.StringIO()
        monkeypatch.setattr(supervise, "submit", self._submit)
        monkeypatch.setattr(supervise, "stop_run", self._stop)
        monkeypatch.setattr(supervise.RoundStore, "records", lambda store: list(store.folder.glob("[0-9]*")))
        monkeypatch.setattr("aggregator.superlink.flower_runs.run_status", lambda run: "finished:failed")
        monkeypatch.setattr("aggregator.superlink.flower_runs.LOADING_S", 0.0)

    def _submit(self, *_: object, **options: object) -> Run:
        what = self.plan[self.submitted]
        self.submitted += 1
        if what == "refuse":
            raise FederationError("nobody answers at 127.0.0.1:1")
        subprocess.run([sys.executable, "-c", SERVE, str(self.folder), what], check=True)
        return Run(self.submitted, self.folder)

    def _stop(self, run: Run) -> None:
        self.stopped += 1

    def go(self, limit: int = 2, revive: Callable[[], None] = lambda: None) -> str:
        retries = Retries(limit, Backoff(0.01, 0.02), random.Random(0))
        with LiveView(Console(file=self.stream, width=200), load_experiment("demo")) as view:
            see_through(self.folder, Target("127.0.0.1:1", revive=revive), view, retries)
        return self.stream.getvalue()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lab]:
    return lambda *plan: Lab(tmp_path, monkeypatch, list(plan))


def test_a_run_that_finishes_is_submitted_once(lab: Callable[..., Lab]) -> None:
    bench = lab("finished")
    assert "all rounds are committed" in bench.go()
    assert (bench.submitted, bench.stopped) == (1, 0)


def test_a_server_app_that_dies_is_started_again_and_that_is_told(lab: Callable[..., Lab]) -> None:
    bench = lab("die", "die", "finished")
    text = bench.go()
    assert "(1 of 2)" in text and "(2 of 2)" in text and bench.submitted == 3
    waits = [event["wait_s"] for event in read_events(bench.folder / "events.jsonl") if event["kind"] == "restarting"]
    assert len(waits) == 2 and max(waits) <= 0.1


def test_it_is_not_started_again_for_ever(lab: Callable[..., Lab]) -> None:
    bench = lab("die", "die", "die")
    with pytest.raises(FederationError, match="started again 2 times without a new round") as error:
        bench.go()
    assert "fedmed resume" in error.value.hint and bench.submitted == 3


def test_a_new_round_starts_the_count_anew(lab: Callable[..., Lab]) -> None:
    bench = lab("die", "die", "round", "die", "die", "finished")
    bench.go(limit=3)
    assert bench.submitted == 6


def test_what_would_fail_again_is_told_at_once(lab: Callable[..., Lab]) -> None:
    bench = lab("failed", "finished")
    with pytest.raises(FederationError, match="the disk is full") as error:
        bench.go()
    assert (error.value.hint, bench.submitted) == ("make room", 1)


def test_a_wrong_address_is_told_at_once_and_a_superlink_that_goes_later_is_waited_for(lab: Callable[..., Lab]) -> None:
    bench = lab("refuse", "die", "refuse", "finished")
    with pytest.raises(FederationError, match="nobody answers"):
        bench.go()
    assert bench.submitted == 1
    revived: list[int] = []
    bench.go(limit=3, revive=lambda: revived.append(1))
    assert (bench.submitted, len(revived)) == (4, 2)


def test_a_later_start_says_where_it_goes_on(lab: Callable[..., Lab]) -> None:
    bench = lab("finished")
    log = EventLog(bench.folder / "events.jsonl")
    log.emit("zero_shot", accuracy=0.5)
    log.emit("failed", message="the disk was full", hint="")
    text = bench.go()
    assert "going on after round 0 of 5" in text and "the disk was full" not in text and "zero-shot" not in text


def test_the_processes_above_are_watched_if_they_are_flowers() -> None:
    import psutil

    assert flower_ancestors() == []
    child = subprocess.Popen([sys.executable, "-c", ""])
    found = psutil.Process(child.pid)
    while found.status() != psutil.STATUS_ZOMBIE:
        pass
    assert ended([found])  # its id still exists: nobody has asked after it
    child.wait()
    assert ended([found]) and not ended([psutil.Process()])
