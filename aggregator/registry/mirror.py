"""Rounds appear in the registry as they are committed, and never wait for it.

    with Mirror(folder, registry) as mirror:
        mirror.handle(event)          # a line to the outbox on `round_committed`; a thread sends what is in it

| the registry           | the rounds                              | what is told                                       |
| ---------------------- | --------------------------------------- | -------------------------------------------------- |
| answers                | go on                                   | nothing                                            |
| is down                | go on; tried again, backoff with jitter | once, and at the end what still waits in the outbox |
| is slow                | go on                                   | at the end, that it is waited for                  |
| hangs                  | go on                                   | after CLOSE_S at the end: the outbox is left alone |
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aggregator.registry import Registry
from aggregator.registry.database import WAIT_S
from aggregator.registry.outbox import Outbox, deliver_rounds
from fedmed.backoff import Backoff
from fedmed.errors import FedMedError

BACKOFF = Backoff(base_s=4.0, cap_s=120.0)
# A call that was begun is given so long to end: two who send the same would begin two runs. A first store is waited for while
# its tables are made, by this command or by another one, on a machine that trains meanwhile.
CLOSE_S = WAIT_S + 30.0
TELL_S = 5.0  # of waiting that nobody need be told of


class Mirror:
    """Sends a run's committed rounds to the registry from a thread.

    Attributes:
        stuck: after the block, whether the registry still holds the thread: nothing else may then be sent.

    Args:
        say: told once, in one line, when the registry cannot be reached.
    """

    def __init__(self, folder: Path, registry: Registry, say: Callable[[str], None], close_s: float = CLOSE_S) -> None:
        self._outbox, self._registry, self._say = Outbox(folder), registry, say
        self._close_s = close_s
        self._wanted, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry-mirror", daemon=True)
        self.stuck = False

    def __enter__(self) -> Self:
        self._outbox.fill()
        self._wanted.set()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._wanted.set()
        if error is None:
            self._wait()
        self.stuck = self._thread.is_alive()

    def _wait(self) -> None:
        self._thread.join(min(TELL_S, self._close_s))
        rest = self._close_s - TELL_S
        if rest > 0 and self._thread.is_alive():
            self._say(f"waiting for the registry, at most {rest:.0f} s")
            self._thread.join(rest)

    def handle(self, event: Mapping[str, Any]) -> None:
        """Takes in one of the run's events; returns at once."""
        if event.get("kind") in ("round_committed", "evaluated"):
            self._outbox.fill()
            self._wanted.set()

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            self._wanted.wait()
            self._wanted.clear()
            try:
                deliver_rounds(self._outbox, self._registry)
                failures = 0
            except FedMedError as error:
                failures += 1
                if failures == 1:
                    self._say(f"{error.message}; the rounds go on, and are sent to it later")
                self._closing.wait(BACKOFF.delay(failures, random.random()))  # noqa: S311  jitter
                self._wanted.set()
