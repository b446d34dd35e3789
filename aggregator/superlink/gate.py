"""A consortium's SuperLink ends with the `fedmed superlink` that keeps its nodes those of the register.

    os.environ[GATE_KEY] = str(os.getpid())      # in `fedmed superlink`, handed down
    end_with_gate()                              # in the SuperLink

Without the first, nobody would take a revoked site's key out of the second: it would serve that site for as long as it lives.
"""

from __future__ import annotations

import os
import signal
import threading
import time

GATE_KEY = "FEDMED_GATE"
LOOK_S = 1.0


def end_with_gate() -> None:
    """Watches, in a thread, the parent that GATE_KEY names; SIGTERM to this process when it has ended. Else nothing."""
    if gate := os.environ.get(GATE_KEY):
        threading.Thread(target=_watch, args=(int(gate),), name="end-with-gate", daemon=True).start()


def _watch(gate: int) -> None:
    while os.getppid() == gate:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
