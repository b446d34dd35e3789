"""A hospital of the suite: its folder as `fedmed-site init` makes it, 30 phantom patients, and its daemon as a process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregator.runs.processes import Managed
from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.errors import FederationError
from fedmed.messages import DescribeTask, Message, TrainTask, decode, encode
from fedmed.wire import channel
from hospital_client.fakes import BASE_SHA256, example_task
from hospital_client.setup import create_site
from tests.faults.lab import Done, Lab, ends, json_lines, wait_for

PATIENTS = 30
OWN = "own"
ADAPTER = b"the adapter, which a daemon without torch passes on unread"


@dataclass
class Hospital:
    """A site's folder and the daemon that runs on it at present."""

    lab: Lab
    root: Path
    socket: Path
    starts: int = 0
    daemon: Managed | None = None
    answers: list[Any] = field(default_factory=list)

    @property
    def hold_evaluation(self) -> Path:
        """While this file is there, the stand-in's evaluation of held-out patients does not end."""
        return self.socket.with_suffix(".hold_evaluation")

    @property
    def hold(self) -> Path:
        """While this file is there, the stand-in's training does not end; a number in it is the first round that waits."""
        return self.socket.with_suffix(".hold")

    def start(self, *, real: bool = False) -> Hospital:
        """Starts the daemon and waits until it is ready. `real`: `fedmed-site start`, with the model; else the stand-in."""
        module = ["hospital_client.cli", "start"] if real else ["tests.faults.stand_in"]
        self.starts += 1
        command = [sys.executable, "-m", *module, str(self.root)]
        self.daemon = self.lab.start(f"{self.root.name}-{self.starts}", command)
        wait_for(self._is_ready, f"{self.root.name} to be ready")
        return self

    def _is_ready(self) -> bool:
        assert self.daemon is not None
        self.daemon.require_running()
        return " ready " in self.daemon.log.read_text()

    def fails_to_start(self) -> Done:
        """`fedmed-site start`, which must end by itself."""
        return self.lab.fedmed_site("start", str(self.root))

    def kill(self) -> None:
        assert self.daemon is not None
        ends(self.daemon, signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.daemon is not None
        return ends(self.daemon, signal.SIGTERM)

    def send(self, frame: bytes, socket: Path | None = None) -> bytes:
        """A frame to the daemon, past it to a proxy's socket where one is given; the frame that comes back."""
        return channel.handle(socket or self.socket, frame, timeout_s=100)

    def ask(self, task: TrainTask | DescribeTask, payload: bytes = ADAPTER) -> Message:
        return decode(self.send(encode(task, payload if isinstance(task, TrainTask) else b"")))[0]

    def ask_aside(self, task: TrainTask, payload: bytes = ADAPTER, socket: Path | None = None) -> threading.Thread:
        """The same from a thread; `answers` gets the answer, or the error of a daemon that is gone."""

        def send() -> None:
            try:
                self.answers.append(decode(self.send(encode(task, payload), socket))[0])
            except FederationError as error:
                self.answers.append(error)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        return thread

    def wait_until_training(self, times: int = 1) -> None:
        """Until the task is accepted, so that its reservation is on disk, and the records are about to be read."""
        wait_for(lambda: self.decisions().count("accepted") >= times, "the task to be accepted")
        wait_for(lambda: channel.status(self.socket, 60).state == "training", "the training to begin")

    def decisions(self) -> list[str]:
        """What audit.jsonl says, in order."""
        return [str(line["decision"]) for line in json_lines(self.root / "audit.jsonl")]

    def trainings(self) -> list[str]:
        """`begun` and `done`, as the stand-in's trainer noted them."""
        notes = self.socket.with_suffix(".trainings")
        return notes.read_text().split() if notes.exists() else []

    def ledger(self) -> tuple[int, int]:
        """Reservations and commits in the journal, counted without the product's own reader."""
        kinds = [line["kind"] for line in json_lines(self.root / "ledger.jsonl")]
        return kinds.count("reserve"), kinds.count("commit")

    def epsilon(self) -> float:
        """What the running daemon says was spent, reservations included."""
        return float(channel.status(self.socket, 60).epsilon_spent)


def make_hospital(
    lab: Lab,
    name: str = "north",
    *,
    within: Path | None = None,
    witness: Path | None = None,
    patients: int = PATIENTS,
    held_out: int = 0,
    **policy: str,
) -> Hospital:
    """A hospital in `within` (a small disk, perhaps), its data on an ordinary one; `held_out` patients more for evaluations.
    Without `base_models` in `policy` it allows the stand-in's; with `base_models=OWN` those of its site.yaml, which is the
    embedded model."""
    data = lab.root / "data" / name
    write_manifest(data, phantom_examples(patients, sum(name.encode()), domain="hospital", split="train"))
    root = (within or lab.root) / name
    site = {"name": name, "data": str(data), "socket": str(lab.root / f"{name}.sock")}
    site |= {"witness": str(witness or lab.root / f"{name}.witness")}
    if held_out:
        others = phantom_examples(held_out, sum(name.encode()) + 1, domain="hospital", split="test")
        site["held_out"] = str(write_manifest(lab.root / "held_out" / name, others).folder)
    policy = {"base_models": f"[{BASE_SHA256}]", "epsilon_budget": "8.0", **policy}
    create_site(root, site, {key: value for key, value in policy.items() if value != OWN})
    return Hospital(lab, root, lab.root / f"{name}.sock")


def task(number: int = 1, **changes: Any) -> TrainTask:
    """A task of two steps that the policy of `make_hospital` allows."""
    return example_task(**{"round": number, "rounds": 99, "steps": 2, **changes})


def error_lines(done: Done) -> str:
    """What a person sees of a command that failed: its error, without the hint. A traceback is an error of ours."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else done.stderr.strip()


def hint_of(done: Done) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip().startswith("hint: ")]
    return lines[-1].removeprefix("hint: ") if lines else ""


def peak_memory(pid: int) -> int:
    """Bytes that a process has held at most."""
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def runs_as_root() -> bool:
    return os.geteuid() == 0
