"""`fedmed run` and `resume` as processes of a test: started, watched, hurt by process id, and what they left on disk.

Every process of a run carries the test's mark in its environment, so that it is found and ended whatever became of its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from aggregator.rounds.store import RoundStore
from aggregator.watching.events import read_events

WAIT_S = 900  # a machine that does other things at the same time
MARK = "FEDMED_TEST_MARK"
SMALL = [
    "data.source=phantom",
    "data.train_patients=150",
    "data.test_patients=30",
    "training.local_steps=2",
    "privacy.sample_rate=0.2",
]
TWO_SITES = [*SMALL, "partition.sites=[north,valley]", "partition.scheme=iid"]


def start_fedmed(runs: Path, *arguments: str) -> subprocess.Popen[str]:
    """`fedmed ARGUMENTS` with this test's mark, its output in a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "aggregator.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {MARK: str(runs)},
    )


def start_run(runs: Path, name: str, *overrides: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """`fedmed run demo` with these overrides."""
    return start_fedmed(runs, "run", "demo", f"name={name}", *overrides, "--runs-dir", str(runs), *options)


def fedmed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "aggregator.cli", *arguments], capture_output=True, text=True)


def outcome(process: subprocess.Popen[str]) -> str:
    """What the command said, after it has ended with status 0."""
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, output
    return output


@contextlib.contextmanager
def ending_all(runs: Path) -> Iterator[None]:
    """Whatever carries the mark of `runs` is ended at the end of the block, also when the test has failed."""
    try:
        yield
    finally:
        for process in marked(runs):
            with contextlib.suppress(psutil.Error):
                process.kill()


def marked(runs: Path) -> list[psutil.Process]:
    """Processes that run and carry this test's mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(runs) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def find(runs: Path, *words: str) -> psutil.Process:
    """The process whose command line holds all the words: find(runs, "flwr-serverapp"), find(runs, "cli", "start", "north")."""
    for process in marked(runs):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if all(word in line for word in words):
                return process
    raise AssertionError(f"no process with {words} in its command line")


def server_app(runs: Path) -> psutil.Process:
    return find(runs, "flwr-serverapp")


def superlink(runs: Path) -> psutil.Process:
    """The process that `fedmed run` started as SuperLink, whatever its program is called."""
    return server_app(runs).parent().parent()


def daemon(runs: Path, site: str) -> psutil.Process:
    return find(runs, "hospital_client.cli", "start", f"/sites/{site}")


def connector(runs: Path, site: str) -> psutil.Process:
    return find(runs, "hospital_client.cli", "connect", f"/sites/{site}")


def kill_all(runs: Path) -> None:
    """kill -9 of every process at once: a power cut, as far as processes can tell. First all are stopped, so that none sees
    another one die."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in marked(runs):
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
    wait_until(lambda: not marked(runs), "all processes are gone")


def wait_until(done: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None) -> None:
    """Returns when `done`; fails after WAIT_S, or when `process` has ended before."""
    deadline = time.monotonic() + WAIT_S
    while not done():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended before {what}: {process.stdout.read() if process.stdout else ''}")
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.05)


def events(folder: Path, kind: str, **fields: object) -> list[dict[str, Any]]:
    """The run's events of this kind with these fields."""
    return [
        event
        for event in read_events(folder / "events.jsonl")
        if event["kind"] == kind and all(event.get(key) == value for key, value in fields.items())
    ]


def wait_for_event(process: subprocess.Popen[str], folder: Path, kind: str, *, nth: int = 1, **fields: object) -> None:
    wait_until(lambda: len(events(folder, kind, **fields)) >= nth, f"event {kind} {fields}", process)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON lines file; none while it does not exist."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def decisions(folder: Path, site: str, decision: str) -> list[int]:
    """The rounds for which the site's audit has such a line, in order."""
    lines = read_lines(folder / "sites" / site / "audit.jsonl")
    return [line["round"] for line in lines if line["decision"] == decision]


def reservations(folder: Path, site: str) -> Counter[int]:
    """How often the site's ledger reserved each round: what counts as spent."""
    return Counter(line["round"] for line in _ledger(folder, site) if line["kind"] == "reserve")


def commits(folder: Path, site: str) -> Counter[int]:
    """How often the site's ledger committed each round."""
    lines = _ledger(folder, site)
    rounds = {line["sequence"]: line["round"] for line in lines if line["kind"] == "reserve"}
    return Counter(rounds[line["reservation"]] for line in lines if line["kind"] == "commit")


def _ledger(folder: Path, site: str) -> list[dict[str, Any]]:
    return read_lines(folder / "sites" / site / "ledger.jsonl")


def assert_each_round_once(folder: Path, rounds: int, sites: tuple[str, ...] = ("north", "valley")) -> None:
    """Every round is committed, with every site's reply, and no site has spent or committed a round twice."""
    records = RoundStore(folder / "rounds").records()
    assert [record.round for record in records] == list(range(rounds + 1))
    assert [sorted(report.site for report in record.replies) for record in records[1:]] == [sorted(sites)] * rounds
    for site in sites:
        once = Counter(range(1, rounds + 1))
        assert (site, reservations(folder, site), commits(folder, site)) == (site, once, once)
