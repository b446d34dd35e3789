"""Files that are on disk for good when a call returns: whole or not at all, and appended or not at all.

    write_atomic(path, data)     a new content, by rename          create(path)     an empty file, mode 0600
    append(fd, data)             the next bytes of an open file

Each of them asks the disk (fsync), for new names in a folder also the folder.
"""

from __future__ import annotations

import os
from pathlib import Path


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
