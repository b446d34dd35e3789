"""Who is gone and who is waited for: told once each, and again when it has been quiet; and whether the server app lives."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aggregator.rounds import lookout as lookout_module
from aggregator.rounds.lookout import lookout, what_is_wrong
from aggregator.rounds.presence import QUIET_S, Presence
from aggregator.runs.locks import SERVER_LOCK, hold
from aggregator.watching.events import EventLog, read_events
from aggregator.watching.watch import watch_run

BOTH = {"north", "valley"}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def presence(tmp_path: Path, clock: Clock) -> Presence:
    return Presence(EventLog(tmp_path / "events.jsonl"), clock)


def told(folder: Path) -> list[tuple[Any, ...]]:
    fields = ("kind", "round", "site", "sites", "offline", "left_s")
    return [tuple(event[name] for name in fields if name in event) for event in read_events(folder / "events.jsonl")]


def test_a_site_that_goes_and_comes_is_told_once_each(presence: Presence, tmp_path: Path) -> None:
    for online in (BOTH, {"north"}, {"north"}, BOTH, BOTH):
        presence.look(online, BOTH)
    assert told(tmp_path) == [("offline", 0, "valley"), ("online", 0, "valley")]


def test_who_is_waited_for_is_told_when_it_is_quiet_ever_more_rarely(
    presence: Presence, tmp_path: Path, clock: Clock
) -> None:
    presence.open_round(2, BOTH, deadline_s=300.0)
    presence.answered("north")
    for second in range(0, 101):
        clock.now = float(second)
        presence.look({"north"}, BOTH)
    waits = [event for event in told(tmp_path) if event[0] == "waiting_for"]
    assert [event[-1] for event in waits] == [300 - QUIET_S, 300 - 3 * QUIET_S, 300 - 7 * QUIET_S]
    assert all(event[1:4] == (2, ["valley"], ["valley"]) for event in waits)
    presence.close_round()
    clock.now = 5000.0
    presence.look({"north"}, BOTH)
    assert len([event for event in told(tmp_path) if event[0] == "waiting_for"]) == 3


def test_an_answer_is_no_silence(presence: Presence, tmp_path: Path, clock: Clock) -> None:
    presence.open_round(1, BOTH, deadline_s=300.0)
    clock.now = QUIET_S - 1
    presence.answered("north")
    clock.now = QUIET_S + 1
    presence.look(BOTH, BOTH)
    assert told(tmp_path) == []


def wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_look_that_hangs_or_fails_does_not_stop_the_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout_module, "BEAT_S", 0.02)
    monkeypatch.setattr(lookout_module, "LOOK_S", 0.02)
    release, looks = threading.Event(), []

    def look() -> None:
        looks.append(1)
        if len(looks) < 3:
            raise OSError("no answer")
        release.wait(60)

    with hold(tmp_path / SERVER_LOCK, "x"), lookout(tmp_path, look):
        wait_for(lambda: len(looks) == 3)
        before = (tmp_path / "alive").stat().st_mtime_ns
        wait_for(lambda: (tmp_path / "alive").stat().st_mtime_ns > before)
        assert what_is_wrong(tmp_path) == ""
        release.set()
    assert what_is_wrong(tmp_path) == "no server app works on this run at present"


SERVE = (
    "import sys, time; from pathlib import Path\n"
    "from aggregator.runs.locks import SERVER_LOCK, hold; from aggregator.rounds.lookout import lookout\n"
    "folder = Path(sys.argv[1])\n"
    "with hold(folder / SERVER_LOCK, 'x'), lookout(folder, lambda: None): print('up', flush=True); time.sleep(600)"
)


def test_a_server_app_that_stands_still_is_seen_and_one_that_is_killed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout_module, "SILENT_S", 4.0)
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        wait_for((tmp_path / "alive").exists)
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(lambda: what_is_wrong(tmp_path).startswith("no sign of the server app for"))
    finally:
        process.kill()
        process.wait()
    assert what_is_wrong(tmp_path) == "no server app works on this run at present"


def test_watching_shows_what_was_and_what_comes_and_ends_with_the_run(
    tmp_path: Path, finished_run: Callable[..., tuple[Path, Any]]
) -> None:
    folder, _ = finished_run(tmp_path / "demo")
    log = EventLog(folder / "events.jsonl")
    log.emit("round_started", round=3, rounds=5, sites=["north", "valley"], deadline_s=300.0)
    log.emit("offline", round=3, site="valley")
    stream, ended = io.StringIO(), []
    thread = threading.Thread(
        target=lambda: ended.append(watch_run(folder, Console(file=stream, width=200))), daemon=True
    )
    thread.start()
    wait_for(lambda: "no server app works" in stream.getvalue())
    log.emit("reply", round=3, site="north", epsilon=1.0, seconds=2.0)
    log.emit("finished")
    thread.join(60)
    assert ended == ["finished"]
    text = stream.getvalue()
    assert "round 3 of 5: training; waiting for north, valley (offline for" in text
    assert "north replied after" in text and "all rounds are committed" in text
    assert "joined with" not in text  # what was is added up, not told again
