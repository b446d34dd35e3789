"""A server app shows that it lives, and looks after its sites, whatever its main thread does.

    with lookout(run_dir, look):
        ...                          # run_dir/alive is touched every BEAT_S, look() is called every LOOK_S

| who asks                                   | what tells that the server app is gone                                |
| ------------------------------------------ | --------------------------------------------------------------------- |
| on the same machine                        | its lock is free (aggregator/runs/locks.py): at once                       |
| from anywhere, also when it is stopped     | `alive` is older than SILENT_S                                        |
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aggregator.runs import locks

ALIVE_FILE = "alive"
BEAT_S, LOOK_S, SILENT_S = 3.0, 2.0, 9.0
log = logging.getLogger("fedmed.server_app")


@contextmanager
def lookout(run_dir: Path, look: Callable[[], None]) -> Iterator[None]:
    """Two threads, so that a look that hangs with its SuperLink does not stop the beat."""
    stop = threading.Event()
    alive = run_dir / ALIVE_FILE
    for work, every_s in ((alive.touch, BEAT_S), (look, LOOK_S)):
        threading.Thread(target=_repeat, args=(work, every_s, stop), name="lookout", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        alive.unlink(missing_ok=True)


def _repeat(work: Callable[[], None], every_s: float, stop: threading.Event) -> None:
    failed = False
    while True:
        try:
            work()
            failed = False
        except Exception:  # what fails now, disk or SuperLink, may answer at the next look
            if not failed:
                log.warning("the lookout cannot look", exc_info=True)
            failed = True
        if stop.wait(every_s):
            return


def what_is_wrong(run_dir: Path) -> str:
    """What a person should know about the run's server app at present; "" while it works."""
    if locks.holder(run_dir / locks.SERVER_LOCK) is None:
        return "no server app works on this run at present"
    try:
        silent_s = time.time() - (run_dir / ALIVE_FILE).stat().st_mtime
    except FileNotFoundError:  # it is loading, or winding down
        return ""
    return f"no sign of the server app for {silent_s:.0f} s" if silent_s > SILENT_S else ""
