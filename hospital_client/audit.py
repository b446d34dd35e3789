"""What the site decided, one JSON line each, on disk before the decision takes effect. No patient field, ever.

    {"time", "decision", "code", "run", "round", "task_sha256", "epsilon", "seconds", "message"}

| decision  | meaning                                                                               |
| --------- | ------------------------------------------------------------------------------------- |
| described | counts were released as the policy says                                               |
| accepted  | the ledger holds the reservation; training begins                                     |
| released  | a result was committed and leaves the site                                            |
| resent    | the stored result of the same task leaves again; nothing trained or spent             |
| refused   | by policy, budget or a damaged message (`code`); nothing was read                     |
| failed    | a fault inside the site, or the daemon was stopped; what was reserved stays spent     |
| consent   | a person withdraws or restores the consent of patients: counts alone, in `message`    |
| started, stopped | the daemon                                                                     |
"""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

MAX_TEXT = 500


class Audit:
    """Appends to one file; safe from several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        if (size := os.fstat(self._fd).st_size) and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # a line that a crash cut off must not swallow the next

    def write(
        self,
        decision: str,
        *,
        code: str = "",
        run: str = "",
        round: int = 0,
        task_sha256: str = "",
        epsilon: float | None = None,
        seconds: float | None = None,
        message: str = "",
    ) -> None:
        """One line, on disk when this returns. `epsilon` is the cohort's after the decision, infinity as -1; `seconds` is
        how long training took, which stays here: it depends on who was drawn."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "decision": decision,
            "code": code,
            "run": run[:MAX_TEXT],
            "round": round,
            "task_sha256": task_sha256,
            "epsilon": finite(epsilon) if epsilon is not None else None,
            "seconds": seconds,
            "message": message[:MAX_TEXT],
        }
        with self._lock:
            os.write(self._fd, json.dumps(line).encode() + b"\n")
            os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def finite(epsilon: float) -> float:
    """Epsilon as JSON and the wire carry it: infinity as -1."""
    return -1.0 if epsilon == float("inf") else epsilon
