"""The rounds of a run, seen through to the end: the server app or its SuperLink may die, and is started again.

    submit -> follow -> finished
       ^        |
       |        | ServerGone: event `restarting`, wait (backoff with jitter), revive the SuperLink
       +--------+

| what happens                                     | what follows                                                      |
| ------------------------------------------------ | ----------------------------------------------------------------- |
| the server app ends without a last event         | submitted again; it goes on after the last committed round        |
| the SuperLink dies, and it was started here      | started again on its ports, where its sites find it               |
| the SuperLink dies, and it is somebody else's    | asked again until it answers                                      |
| RESTARTS times in a row without a new round      | FederationError with the last reason                              |
| a round was committed since                      | the count starts anew                                             |
| event `failed`: it would fail again              | FederationError at once, with the reason                          |
| the first submission is refused                  | FederationError at once: an address may be wrong                  |
| a server app works in the folder already         | it is followed; nothing is submitted beside it                    |
| the same, and its SuperLink is gone              | it ends by itself; the next is submitted when it has              |
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator.rounds.store import RoundStore
from aggregator.runs import locks
from aggregator.runs.folder import EVENTS_FILE
from aggregator.runs.local import LocalFederation
from aggregator.runs.processes import ProcessGroup
from aggregator.superlink.flower_runs import Run, ServerGone, follow, stop_run, submit
from aggregator.watching.events import EventLog, EventReader
from aggregator.watching.live import LiveView
from fedmed.backoff import Backoff, Retries
from fedmed.errors import FederationError

RESTARTS = 5
# Somebody else's SuperLink takes as long as its people do: at the cap below, about ten minutes.
FOREIGN_RESTARTS = 20
BACKOFF = Backoff(base_s=2.0, cap_s=60.0)
Tell = Callable[[Mapping[str, Any]], None]
# How long a server app may take to notice that its SuperLink is gone, in seconds.
ORPHAN_S = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where a run is submitted: `control` of a SuperLink ("" is none yet) and its CA, None for plain text on loopback; and,
    where it was started here, how to bring it back."""

    control: str
    root_certificates: Path | None = None
    group: ProcessGroup | None = None
    revive: Callable[[], None] = lambda: None
    wait_until_ready: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, local: LocalFederation) -> Target:
        """A federation that was started here."""
        return cls(local.control, None, local.processes, local.revive, local.wait_until_ready)

    @property
    def restarts(self) -> int:
        """So many are tried in a row without a new round."""
        return RESTARTS if self.group else FOREIGN_RESTARTS


def see_through(
    folder: Path, target: Target, view: LiveView, retries: Retries | None = None, also: Tell = lambda event: None
) -> None:
    """Submits the run of `folder` and shows its events until all rounds are committed.

    Args:
        also: is told each new event too, and must return at once.

    Raises:
        FederationError: as the table says; a run on somebody else's SuperLink is then stopped there.
    """
    _Supervisor(folder, target, view, retries or Retries(target.restarts, BACKOFF), also).run()


class _Supervisor:
    def __init__(self, folder: Path, target: Target, view: LiveView, retries: Retries, also: Tell) -> None:
        self._also = also
        self._folder, self._target, self._view, self._retries = folder, target, view, retries
        self._events = EventReader(folder / EVENTS_FILE)
        self._rounds = RoundStore(folder / "rounds")
        self._done = len(self._rounds.records())
        self._lock = folder / locks.SERVER_LOCK

    def run(self) -> None:
        self._recall()
        run = self._submit()
        try:
            self._target.wait_until_ready()  # the ServerApp loads its model meanwhile
            while (gone := self._follow(run)) is not None:
                run = None
                run = self._start_again(gone)
            run = None
        finally:
            if run is not None and self._target.group is None:
                with contextlib.suppress(FederationError):  # what made us leave is what the person has to know
                    stop_run(run)

    def _recall(self) -> None:
        """Brings the view up to what an earlier start has reached, and says that this one goes on from there."""
        earlier = list(self._events.new())
        for event in earlier:
            self._view.recall(event)
        if earlier:
            self._tell("resumed", round=max(0, len(self._rounds.records()) - 1), rounds=self._view.progress.rounds)

    def _tell(self, kind: str, **fields: object) -> None:
        """Writes an event, and shows it with whatever else came in."""
        EventLog(self._events.path).emit(kind, **fields)
        for event in self._events.new():
            self._view.handle(event)

    def _submit(self) -> Run | None:
        """The submitted run; None when a server app is at work in the folder, which then is to be followed."""
        if locks.holder(self._lock) is not None:
            return None
        target, home = self._target, self._folder / "flower"
        return submit(target.control, self._folder, home, root_certificates=target.root_certificates)

    def _follow(self, run: Run | None) -> FederationError | None:
        """Shows events until the run has finished, or returns why it has to be started again."""
        try:
            for event in follow(run, self._events, self._target.group):
                self._view.handle(event)
                self._also(event)
                if event["kind"] == "failed":
                    hint = event.get("hint") or f"see the logs in {self._folder / 'logs'}"
                    raise FederationError(event["message"], hint)
        except ServerGone as gone:
            if (done := len(self._rounds.records())) > self._done:
                self._done = done
                self._retries.progress()
            return gone
        return None

    def _start_again(self, gone: FederationError) -> Run | None:
        """Waits, brings the SuperLink back, and submits again, until that succeeds or was tried too often."""
        while True:
            self._announce_and_wait(gone)
            try:
                self._target.revive()
                self._wait_for_orphan()
                return self._submit()
            except FederationError as error:
                gone = error

    def _announce_and_wait(self, gone: FederationError) -> None:
        wait_s = self._retries.failed()
        if wait_s is None:
            raise FederationError(
                f"{gone.message}; started again {self._retries.limit} times without a new round",
                f"see the logs in {self._folder / 'logs'}, then go on with: fedmed resume {self._folder}",
            )
        count, limit = self._retries.count, self._retries.limit
        self._tell("restarting", message=gone.message, wait_s=round(wait_s, 1), attempt=count, limit=limit)
        time.sleep(wait_s)

    def _wait_for_orphan(self) -> None:
        end = time.monotonic() + ORPHAN_S
        while locks.holder(self._lock) is not None and time.monotonic() < end:
            time.sleep(0.2)
