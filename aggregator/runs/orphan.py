"""A ServerApp ends with its SuperLink: without it no reply can come, and another one may be started for the same run.

    SuperLink <- watched - executor <- watched - this process

Flower's own watch asks whether a process id exists. A killed process whose parent never asks after it keeps its id, as a
zombie, and then its ServerApp would live for ever.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence

import psutil

LOOK_S = 1.0
# Flower's own ending, where it works, says good-bye to the SuperLink first.
GRACE_S = 5.0
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
log = logging.getLogger("fedmed.server_app")


def end_with_superlink() -> None:
    """Watches, in a thread, the Flower programs that this process descends from; ends it when one of them has ended.

    Nothing is cut off by that: a round is on disk whole or not at all. Started without them, nothing is watched.
    """
    above = flower_ancestors()
    if above:
        threading.Thread(target=_watch, args=(above,), name="end-with-superlink", daemon=True).start()


def flower_ancestors() -> list[psutil.Process]:
    """The executor and the SuperLink above this process, as far as they run on this machine."""
    found = []
    for process in psutil.Process().parents():
        try:
            words = " ".join(process.cmdline()[:3])
        except psutil.Error:
            break
        if "superexec" not in words and "superlink" not in words:
            break
        found.append(process)
    return found


def ended(processes: Sequence[psutil.Process]) -> bool:
    """Whether one of them runs no more; one that nobody has asked after yet, a zombie, has ended."""
    for process in processes:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.Error:
            return True
    return False


def _watch(above: Sequence[psutil.Process]) -> None:
    while not ended(above):
        time.sleep(LOOK_S)
    log.error("the SuperLink of this server app is gone; it ends, and the rounds on disk are whole")
    time.sleep(GRACE_S)
    os._exit(EXIT_CODE)
