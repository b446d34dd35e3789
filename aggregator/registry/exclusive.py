"""One mover of aliases at a time: whoever promotes reads the history, moves the alias and writes it down as one step.

    with registry.exclusive("fedmed"):
        ...                              # nobody else is in here for this model

| store           | how                                                                                              |
| --------------- | ------------------------------------------------------------------------------------------------ |
| sqlite file     | flock(2) on a file beside the database: exact; the kernel gives it back when the holder dies      |
| tracking server | a tag of the model, by Fischer's algorithm (L. Lamport, "A Fast Mutual Exclusion Algorithm",      |
|                 | 1987): claim, wait SETTLE_S, look whether the claim still stands. Exact while a write reaches the |
|                 | store within SETTLE_S; a claim older than STALE_S is of somebody who died                         |
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aggregator.runs import locks
from fedmed.errors import FederationError, RegistryError

WAIT_S = 60.0
SETTLE_S = 1.0
STALE_S = 60.0


@contextmanager
def locked_file(path: Path, name: str, wait_s: float = WAIT_S) -> Iterator[None]:
    """Holds the lock of a model's aliases in a file beside the store.

    Raises:
        RegistryError: somebody else moves an alias of the model for longer than `wait_s`; or the disk does not take the
            file.
    """
    turn = locks.hold(path, "another command", wait_s=wait_s)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        turn.__enter__()
    except locks.Taken:
        raise _taken(name) from None
    except FederationError as error:
        raise RegistryError(error.message, error.hint) from None
    except OSError as error:
        raise RegistryError(f"{path.parent} cannot be made: {error.strerror}", "make room or mend the disk") from None
    try:
        yield
    finally:
        turn.__exit__(None, None, None)


@contextmanager
def claimed(
    name: str,
    read: Callable[[], str],
    write: Callable[[str], None],
    *,
    wait_s: float = WAIT_S,
    settle_s: float = SETTLE_S,
    stale_s: float = STALE_S,
) -> Iterator[None]:
    """Holds a claim that `read` and `write` keep in the store, "" for none.

    Raises:
        RegistryError: somebody else holds the claim for longer than `wait_s`.
    """
    end = time.monotonic() + wait_s
    mine = ""
    while not mine or read() != mine:
        if not _is_free(read(), stale_s):
            if time.monotonic() > end:
                raise _taken(name)
            time.sleep(settle_s / 4)
            continue
        mine = f"{time.time():.3f} {secrets.token_hex(8)}"
        write(mine)
        time.sleep(settle_s)  # by now a claim that was written at the same time has replaced this one, or been replaced
    try:
        yield
    finally:
        if read() == mine:
            write("")


def _is_free(claim: str, stale_s: float) -> bool:
    since = claim.partition(" ")[0]
    try:
        return not claim or time.time() - float(since) > stale_s
    except ValueError:
        return True


def _taken(name: str) -> RegistryError:
    return RegistryError(f"somebody else is moving an alias of {name!r}", "wait for them, then try again")
