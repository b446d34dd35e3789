"""The last results of a site, so that a task that is sent again is answered again instead of trained again.

task SHA-256 -> results/<task SHA-256>.frame, written whole or not at all; the oldest are removed
"""

from __future__ import annotations

from pathlib import Path

from fedmed.errors import WireError
from fedmed.messages import TrainResult, decode
from hospital_client.files import write_atomic

KEEP = 4


class ResultStore:
    """Result frames on disk, the last `keep` of them."""

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        for part in folder.glob("*.part"):  # what a killed daemon left half written
            part.unlink(missing_ok=True)
        self._folder = folder
        self._keep = keep

    def save(self, task_sha256: str, frame: bytes) -> None:
        """Stores a result; durable when this returns."""
        write_atomic(self._path(task_sha256), frame)
        stored = sorted(self._folder.glob("*.frame"), key=lambda path: path.stat().st_mtime_ns)
        for path in stored[: -self._keep]:
            path.unlink(missing_ok=True)

    def load(self, task_sha256: str) -> bytes | None:
        """The stored result of this very task, or None; a damaged one is as good as none."""
        try:
            frame = self._path(task_sha256).read_bytes()
            message, _ = decode(frame)
        except (FileNotFoundError, WireError):
            return None
        return frame if isinstance(message, TrainResult) and message.task_sha256 == task_sha256 else None

    def _path(self, task_sha256: str) -> Path:
        return self._folder / f"{task_sha256}.frame"
