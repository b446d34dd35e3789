"""An append-only file of JSON lines that shows when it was changed: the storage under the ledger.

    body -> one line {"sequence", "time", ...body, "previous", "hash"} -> fsync -> head file -> fsync -> caller goes on

`hash` is an HMAC-SHA256 with the site's key over the line, which holds the hash of the line before: nobody without the
key can change, drop or reorder a line. `ledger.head`, replaced after each line, names the last one, so that lines cut
off the end are missed. (Both files put back together from an old copy are not noticed here.)

| state on disk                                     | what opening does                                      |
| ------------------------------------------------- | ------------------------------------------------------ |
| killed before the line was whole                  | LedgerError: line N is cut off, and how to mend it     |
| killed between line and head                      | the line counts; the head is brought up                |
| a line changed, dropped, swapped, or another key  | LedgerError naming the line                            |
| lines missing at the end, or no head              | LedgerError: fewer lines than the head says            |
| another process holds it                          | LedgerError: locked                                    |
| disk full while appending                         | the part written is taken back, LedgerError            |
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedmed.errors import LedgerError

GENESIS = "0" * 64
_RESTORE = (
    "train nothing until a person has looked: put ledger.jsonl and ledger.head back from the newest backup, and count "
    "what audit.jsonl says was accepted since as spent"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One verified line: its number (from 1), its hash, and what was appended."""

    sequence: int
    hash: str
    body: dict[str, Any]


class Journal:
    """The single writer of one file. Holds its lock until `close` or the end of the process."""

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self._key = key
        self._fd = _open_locked(path)
        try:
            self.lines = read_journal(path, key)
            _write_head(path, key, self.lines)
        except BaseException:
            os.close(self._fd)
            raise
        self._broken = False

    def append(self, body: dict[str, Any]) -> Line:
        """The line, once it is on disk for good. Raises LedgerError when it is not; then nothing was appended."""
        if self._broken:
            raise LedgerError(
                "the ledger could not be written a moment ago and is closed", "mend the disk, then restart"
            )
        line = _seal(self._key, body, self.lines)
        data = json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._write(data)
        entry = Line(line["sequence"], line["hash"], line)
        self.lines.append(entry)
        try:
            _write_head(self.path, self._key, self.lines)
        except OSError as error:
            self._broken = True
            raise LedgerError(
                f"the ledger's head cannot be written: {error.strerror}", "free space, then restart"
            ) from error
        return entry

    def close(self) -> None:
        """Gives the lock back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._fd).st_size
        try:
            if (written := os.write(self._fd, data)) != len(data):
                raise OSError(None, f"{written} of {len(data)} bytes fitted")
            os.fsync(self._fd)
        except OSError as error:
            self._broken = True  # after a failed fsync nobody knows what is on disk: only a fresh look decides
            os.ftruncate(self._fd, size)
            raise LedgerError(f"the ledger cannot be written: {error.strerror}", "free space, then restart") from error


def create_journal(path: Path, key: bytes) -> None:
    """An empty journal with its head. Raises LedgerError when there is one already."""
    if path.exists() or _head_path(path).exists():
        raise LedgerError(f"{path.name} exists already", "a ledger is never started anew: choose another site folder")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    _write_head(path, key, [])


def read_journal(path: Path, key: bytes) -> list[Line]:
    """Every line, verified from the first to the last, without the lock (a reader beside a running daemon is fine).

    Raises:
        LedgerError: naming the first line that cannot be trusted and how to mend it.
    """
    sequence, digest = _read_head(path, key)  # before the lines: a line appended meanwhile is no gap
    raw = _read(path)
    pieces = raw.split(b"\n")
    lines: list[Line] = []
    for number, piece in enumerate(pieces[:-1], start=1):
        lines.append(_verify(number, piece, lines[-1].hash if lines else GENESIS, key))
    if pieces[-1]:
        raise _torn(len(lines) + 1, sequence, path.name)
    if len(lines) < sequence or (sequence and lines[sequence - 1].hash != digest):
        raise LedgerError(
            f"{path.name} ends at line {len(lines)}, its head says line {sequence}: lines are missing at the end",
            _RESTORE,
        )
    return lines


def _open_locked(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
    except OSError as error:
        raise LedgerError(f"{path.name} cannot be opened: {error.strerror}", _RESTORE) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise LedgerError(
            f"{path.name} is locked: another daemon writes it", "stop that daemon first; one ledger has one writer"
        ) from None
    return fd


def _seal(key: bytes, body: dict[str, Any], lines: list[Line]) -> dict[str, Any]:
    line = {
        **body,
        "sequence": len(lines) + 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "previous": lines[-1].hash if lines else GENESIS,
    }
    return {**line, "hash": _mac(key, line)}


def _verify(number: int, piece: bytes, previous: str, key: bytes) -> Line:
    try:
        line = json.loads(piece)
        digest = line.pop("hash")
        whole = line["sequence"] == number and line["previous"] == previous
        whole = whole and hmac.compare_digest(digest, _mac(key, line))
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise LedgerError(f"ledger line {number} was changed, lost or written with another key", _RESTORE)
    return Line(number, digest, line)


def _torn(number: int, acknowledged: int, name: str) -> LedgerError:
    """The last line has no end. When the head never reached it, nothing was done on its strength."""
    if acknowledged == number - 1:
        hint = f"no training followed it: copy {name} away, then remove line {number} (head -n {number - 1})"
    else:
        hint = _RESTORE
    return LedgerError(f"ledger line {number} is cut off in the middle", hint)


def _mac(key: bytes, value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return hmac.new(key, canonical, hashlib.sha256).hexdigest()


def _head_path(path: Path) -> Path:
    return path.with_suffix(".head")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path.name} cannot be read: {error.strerror}", _RESTORE) from None


def _read_head(path: Path, key: bytes) -> tuple[int, str]:
    try:
        head = json.loads(_read(_head_path(path)))
        sequence, digest, mac = head["sequence"], head["hash"], head["mac"]
        whole = type(sequence) is int and sequence >= 0 and hmac.compare_digest(mac, _mac(key, [sequence, digest]))
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise LedgerError(f"{_head_path(path).name} was changed or written with another key", _RESTORE)
    return sequence, digest


def _write_head(path: Path, key: bytes, lines: list[Line]) -> None:
    sequence, digest = (lines[-1].sequence, lines[-1].hash) if lines else (0, GENESIS)
    head = {"sequence": sequence, "hash": digest, "mac": _mac(key, [sequence, digest])}
    write_atomic(_head_path(path), json.dumps(head).encode() + b"\n")


def write_atomic(path: Path, data: bytes) -> None:
    """Puts `data` at `path` (mode 0600) whole or not at all, on disk for good when it returns."""
    part = path.with_name(path.name + ".part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a folder's new and renamed entries durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
