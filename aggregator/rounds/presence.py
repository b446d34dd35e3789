"""Who is there and who is waited for: told when it changes, and again when a round has been quiet for a while.

    presence.open_round(3, {"north", "valley"}, deadline_s=300.0)
    presence.look({"north"}, known={"north", "valley"})          # event offline: valley
    presence.answered("north")                                   # ... and 10 s later: waiting_for valley

| what happens                                | event                                                          |
| ------------------------------------------- | -------------------------------------------------------------- |
| a site that was there is not                | offline, once                                                  |
| it is there again                           | online, once                                                   |
| nothing for QUIET_S in an open round        | waiting_for: names, who of them is offline, seconds left       |
| still nothing                               | waiting_for after twice as long, four times as long, ...       |
| a site that has never joined                | none: the roster waits for it                                  |
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

from aggregator.watching.events import EventLog

QUIET_S = 10.0


class Presence:
    """What the round loop and the lookout know together; safe from several threads.

    Args:
        now: a clock in seconds that only goes forward.
    """

    def __init__(self, events: EventLog, now: Callable[[], float] = time.monotonic) -> None:
        self._events, self._now = events, now
        self._lock = threading.Lock()
        self._online: dict[str, bool] = {}
        self._round = 0
        self._open: set[str] = set()
        self._ends = 0.0
        self._told, self._quiet_s = 0.0, QUIET_S

    def open_round(self, number: int, sites: Collection[str], deadline_s: float) -> None:
        """A task went out to these sites."""
        with self._lock:
            self._round, self._open, self._ends = number, set(sites), self._now() + deadline_s
            self._online |= dict.fromkeys(sites, True)
            self._heard()

    def answered(self, site: str) -> None:
        """Its reply is there, whatever it is worth."""
        with self._lock:
            self._open.discard(site)
            self._heard()

    def close_round(self) -> None:
        """Nobody is waited for any more."""
        with self._lock:
            self._open = set()

    def seen(self, site: str, online: bool) -> None:
        """Tells when that is new. A site that nobody has seen before is there without a word."""
        with self._lock:
            if self._online.setdefault(site, True) != online:
                self._online[site] = online
                self._heard()
                self._events.emit("online" if online else "offline", round=self._round, site=site)

    def look(self, online: Collection[str], known: Collection[str]) -> None:
        """All sites that have joined, and those of them that are connected."""
        for site in sorted(known):
            self.seen(site, site in online)
        self._remind()

    def _heard(self) -> None:
        self._told, self._quiet_s = self._now(), QUIET_S

    def _remind(self) -> None:
        with self._lock:
            now = self._now()
            if not self._open or now - self._told < self._quiet_s:
                return
            self._told, self._quiet_s = now, 2 * self._quiet_s
            self._events.emit(
                "waiting_for",
                round=self._round,
                sites=sorted(self._open),
                offline=sorted(site for site in self._open if not self._online.get(site, True)),
                left_s=round(max(0.0, self._ends - now), 1),
            )
