"""Files that are on disk for good when a call returns: whole or not at all, and appended or not at all.

    write_atomic(path, data)     a new content, by rename           create(path)     an empty file
    write_new(path, data)        a file that was not there          append(fd, data) the next bytes of an open file
    write_json(path, value)      a small JSON file, by rename

Each of them asks the disk (fsync), for new names in a folder also the folder. `data` is bytes, or pieces of them one after the
other; `mode` is PRIVATE, for JSON READABLE, unless said otherwise. All raise OSError for a disk that does not take it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

Data: TypeAlias = bytes | Iterable[bytes | memoryview]

PRIVATE, READABLE = 0o600, 0o644


def write_atomic(path: Path, data: Data, mode: int = PRIVATE) -> None:
    """Puts `data` at `path` whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # of a process that died, perhaps with another mode
    write_new(part, data, mode)
    os.replace(part, path)
    sync_folder(path.parent)


def write_new(path: Path, data: Data, mode: int = PRIVATE) -> None:
    """A file that was not there. Raises FileExistsError; the file may be torn when another OSError is raised."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file it was
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: object, mode: int = READABLE) -> None:
    """Sorted and indented. Raises ValueError for a number that JSON does not have."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(path, text.encode(), mode)


def create(path: Path) -> None:
    """An empty file (mode 0600) that was not there. Raises OSError, FileExistsError among them."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    sync_folder(path.parent)


def append(fd: int, data: bytes) -> None:
    """All of `data` at the end of the file, on disk for good when it returns. Raises OSError when it is not."""
    if (written := os.write(fd, data)) != len(data):
        raise OSError(None, f"{written} of {len(data)} bytes fitted")
    os.fsync(fd)


def cut(fd: int, size: int) -> None:
    """Takes away what a file holds beyond `size` bytes, for good."""
    if os.fstat(fd).st_size > size:
        os.ftruncate(fd, size)
        os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Makes a folder's new and renamed entries durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
