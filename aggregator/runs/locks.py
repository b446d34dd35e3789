"""One worker on a run's folder: locks that the kernel gives back however their holder ends.

    with hold(folder / COMMAND_LOCK, "another command"):
        ...                                     # FederationError, naming its process, while somebody else is in here
    holder(folder / SERVER_LOCK)                # the process that runs the rounds, or None

| lock            | held by                        | so that                                                       |
| --------------- | ------------------------------ | ------------------------------------------------------------- |
| command.lock    | `fedmed run`, `resume`, replay | two people do not go on with the same run                     |
| server-app.lock | the ServerApp, while it serves | an orphan of a dead SuperLink commits no round beside another |

| what happens                       | what the next one sees                                     |
| ---------------------------------- | ---------------------------------------------------------- |
| the holder is killed, or the power | the lock is free: it is flock(2), not the file's existence |
| the disk is full or read-only      | FederationError                                            |
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmed.errors import FederationError

COMMAND_LOCK = "command.lock"
SERVER_LOCK = "server-app.lock"
# `holder` looks by taking the lock for a moment: whoever wants it is not turned away by that.
LOOK_S = 1.0
_POLL_S = 0.05


class Taken(FederationError):
    """Somebody else holds the lock."""


@contextmanager
def hold(path: Path, who: str, *, wait_s: float = LOOK_S, hint: str = "") -> Iterator[None]:
    """Holds the lock inside the block; the file says whose process it is.

    Args:
        who: what another holder is called in the error, such as "another command".
        wait_s: how long to wait for it, in seconds.
        hint: what to do while somebody else holds it; empty: what to do about a run.

    Raises:
        Taken: somebody else still holds it after `wait_s`.
        FederationError: the disk does not take the file.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unusable(path, "opened", error) from None
    try:
        _take(descriptor, path, who, time.monotonic() + wait_s, hint)
        yield
    finally:
        os.close(descriptor)


def holder(path: Path) -> int | None:
    """The process that holds the lock; None when nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return None if _try(descriptor, fcntl.LOCK_SH) else _pid(descriptor)
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, who: str, end: float, hint: str) -> None:
    while not _try(descriptor, fcntl.LOCK_EX):
        if time.monotonic() > end:
            pid = _pid(descriptor)
            raise Taken(
                f"{who} (process {pid}) works on {path.parent}",
                hint or f"wait for it and look with `fedmed watch {path.parent}`, or end it: kill {pid}",
            )
        time.sleep(_POLL_S)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise _unusable(path, "written", error) from None


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid(descriptor: int) -> int:
    """0 in the moment between taking the lock and writing the number."""
    text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdigit() else 0


def _unusable(path: Path, what: str, error: OSError) -> FederationError:
    return FederationError(f"{path} cannot be {what}: {error.strerror}", "make room or mend the disk")
