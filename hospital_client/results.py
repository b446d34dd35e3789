"""The last results of a site, so that a task that is sent again is answered again instead of trained again.

task SHA-256 -> results/<task SHA-256>.frame, written whole or not at all; the oldest are removed

What the site keeps of a round for itself (hospital_client/kept.py) is stored and taken over together with its result.
"""

from __future__ import annotations

from pathlib import Path

from fedmed.errors import WireError
from fedmed.files import write_atomic
from fedmed.messages import EvaluateResult, TrainResult, decode
from hospital_client.kept import Kept, KeptStore

KEEP = 4


class ResultStore:
    """Result frames on disk, the last `keep` of them. What is kept lies beside `folder`."""

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        for part in folder.glob("*.part"):  # what a killed daemon left half written
            part.unlink(missing_ok=True)
        self._folder = folder
        self._keep = keep
        self._kept = KeptStore(folder.parent / "kept")
        self._kept.settle(lambda task_sha256: self._read(task_sha256) is not None)

    def save(self, task_sha256: str, frame: bytes, kept: Kept | None = None) -> None:
        """Stores a result, and what its round leaves at the site; durable when this returns."""
        if kept is not None:
            self._kept.put_aside(kept, task_sha256)
        write_atomic(self._path(task_sha256), frame)
        self._kept.take_over(task_sha256)
        # By time, but never the one just stored: the clock may have been set back, and it would be trained and charged again.
        others = set(self._folder.glob("*.frame")) - {self._path(task_sha256)}
        for path in sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)[self._keep - 1 :]:
            path.unlink(missing_ok=True)

    def load(self, task_sha256: str) -> bytes | None:
        """The stored result of this very task, or None; a damaged one is as good as none."""
        frame = self._read(task_sha256)
        if frame is not None:
            self._kept.take_over(task_sha256)  # where the disk failed just after the result was stored
        return frame

    def _read(self, task_sha256: str) -> bytes | None:
        try:
            frame = self._path(task_sha256).read_bytes()
            message, _ = decode(frame)
        except (FileNotFoundError, WireError):
            return None
        if isinstance(message, TrainResult | EvaluateResult) and message.task_sha256 == task_sha256:
            return frame
        return None

    def _path(self, task_sha256: str) -> Path:
        return self._folder / f"{task_sha256}.frame"
