"""What the registry has still to be told about a run: entries on disk, each delivered once, whenever the registry can be reached.

    outbox = Outbox(folder)
    outbox.fill()                         # an entry for each committed round
    deliver(outbox, registry)             # rounds in order; RegistryError leaves the rest for the next time

    outbox.jsonl    {"entry": "round/3"}                      to be delivered
                    {"delivered": "round/3", "at": ...}       the registry has it

What an entry says is in the run's folder already (rounds/, model/), so an entry is a name alone. It is on disk before anything
is sent, and the registry notes its name with what was sent: cut off in between, the entry is sent again and adds nothing.

| entry     | what is sent                                           | what keeps it single in the registry              |
| --------- | ------------------------------------------------------ | ------------------------------------------------- |
| round/N   | the round's points: accuracy, bytes, seconds, epsilons | the run's tag fedmed.logged/round/N               |
| held_out  | the federated evaluation's scores                      | the run's tag fedmed.logged/held_out              |
| version   | the merged model, its report, and the gate's decision  | the version's tags fedmed.key and gate            |

| what happens                               | what follows                                                        |
| ------------------------------------------ | ------------------------------------------------------------------- |
| the registry is down, or hangs             | rounds go on; the entries wait for `resume` or `registry replay`    |
| killed between sending and noting          | sent again, nothing added                                           |
| killed in the middle of a line             | the line does not count: the entry is sent again, nothing added     |
| the file is lost                           | filled again from the committed rounds, nothing added               |
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aggregator.registry import Registry, Version
from aggregator.registry.publish import publish
from aggregator.registry.story import evaluation_points, open_run, round_points
from aggregator.rounds.evaluation import evaluated_at, read_evaluation
from aggregator.rounds.store import RoundStore
from aggregator.runs.folder import read_experiment
from fedmed.errors import FederationError
from fedmed.files import append

VERSION, HELD_OUT = "version", "held_out"
_ROUND = "round/"


class Outbox:
    """The entries of one run's folder. One process writes, under the folder's command lock; from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "outbox.jsonl"
        self._lock = threading.Lock()
        self._entries: dict[str, bool] = {}  # entry -> delivered; in the order of the file
        for line in _read(self._path):
            if "entry" in line:
                self._entries.setdefault(str(line["entry"]), False)
            elif "delivered" in line:
                self._entries[str(line["delivered"])] = True

    def pending(self) -> list[str]:
        """Entries that are not delivered, oldest first."""
        with self._lock:
            return [entry for entry, delivered in self._entries.items() if not delivered]

    def fill(self) -> None:
        """An entry for each committed round that has none, and for the federated evaluation."""
        records = RoundStore(self.folder / "rounds").records()
        for record in records:
            self.add(f"{_ROUND}{record.round}")
        if records and read_evaluation(self.folder / "rounds", records[-1]) is not None:
            self.add(HELD_OUT)

    def add(self, entry: str) -> None:
        """An entry to be delivered; one that is there already is left alone.

        Raises:
            FederationError: the disk does not take it.
        """
        with self._lock:
            if entry not in self._entries:
                self._append({"entry": entry})
                self._entries[entry] = False

    def note(self, entry: str) -> None:
        """The registry has it."""
        with self._lock:
            self._append({"delivered": entry, "at": round(time.time(), 3)})
            self._entries[entry] = True

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    data = b"\n" + data  # the last writer died in the middle of a line
                append(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise FederationError(f"{self._path} cannot be written: {error.strerror}", "make room") from None


def deliver_rounds(outbox: Outbox, registry: Registry) -> int:
    """Sends what waits of rounds and evaluation; returns how many rounds. Raises RegistryError; the rest then waits on."""
    folder, sent = outbox.folder, 0
    entries = [entry for entry in outbox.pending() if entry.startswith(_ROUND) or entry == HELD_OUT]
    if not entries:
        return 0
    run, store = open_run(folder, read_experiment(folder)), RoundStore(folder / "rounds")
    records = {f"{_ROUND}{record.round}": record for record in store.records()}
    for entry in entries:
        if (record := records.get(entry)) is not None:
            registry.log(run, entry, list(round_points(record, store.committed_at(record.round))))
            outbox.note(entry)
            sent += 1
    found = read_evaluation(store.folder, store.last())
    if HELD_OUT in entries and found is not None:
        registry.log(run, HELD_OUT, list(evaluation_points(found, evaluated_at(store.folder))))
        outbox.note(HELD_OUT)
    return sent


def deliver(outbox: Outbox, registry: Registry) -> Version:
    """Sends everything that waits, and the version, whose publication may be asked for any number of times.

    Raises:
        RegistryError: the registry cannot be reached; what is left waits on.
    """
    outbox.fill()
    outbox.add(VERSION)
    deliver_rounds(outbox, registry)
    version = publish(outbox.folder, registry)
    if VERSION in outbox.pending():
        outbox.note(VERSION)
    return version


def sent(waited: Sequence[str]) -> str:
    """For people: what was delivered of these entries.

    >>> sent(["round/2", "round/3", "version"])
    'sent what had waited: 2 rounds and the version'
    >>> sent([])
    'nothing had waited'
    """
    rounds = sum(entry.startswith(_ROUND) for entry in waited)
    parts = [f"{rounds} round{'s' if rounds > 1 else ''}"] if rounds else []
    parts += ["the held-out scores"] if HELD_OUT in waited else []
    parts += ["the version"] if VERSION in waited else []
    return f"sent what had waited: {' and '.join(parts)}" if parts else "nothing had waited"


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:  # its writer died
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
