"""Flower's SuperExec, which hands a server app its token in a file that has no name instead of on its command line.

    python -m aggregator.superlink.superexec ...          flags and all else as flower-superexec

Whoever may list processes can read command lines, and with a task's token fetch its messages from the SuperLink. The file lives in
memory (memfd), is inherited by the one child, and is gone with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from flwr.supercore.cli import flower_superexec
from flwr.supercore.superexec.executor import subprocess_executor

from fedmed.errors import FederationError

_TOKEN, _TOKEN_FILE = "--token", "--token-file"


def start_without_token(arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """As subprocess.Popen, `--token T` of the arguments moved into a file that only the child has open."""
    if _TOKEN not in arguments:
        return subprocess.Popen(list(arguments), **options)
    at = list(arguments).index(_TOKEN)
    handle = os.memfd_create("token", 0)
    try:
        os.write(handle, arguments[at + 1].encode())
        moved = [*arguments[:at], _TOKEN_FILE, f"/proc/self/fd/{handle}", *arguments[at + 2 :]]
        return subprocess.Popen(moved, pass_fds=[handle], **options)
    finally:
        os.close(handle)


class _Subprocess:
    """What the executor knows as `subprocess`."""

    DEVNULL = subprocess.DEVNULL
    Popen = staticmethod(start_without_token)


def main() -> None:
    """Runs the SuperExec until it is ended."""
    if not hasattr(subprocess_executor, "subprocess"):
        error = FederationError(
            f"{subprocess_executor.__name__} starts no processes", "install the pinned flwr release"
        )
        sys.exit(f"error: {error.message}, expected Flower 1.39\n  hint: {error.hint}")
    subprocess_executor.subprocess = _Subprocess
    flower_superexec()


if __name__ == "__main__":
    main()
