"""The image files that rows of a source name: each read and checked once while rows about it follow each other."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from fedmed.data.images import is_readable, read_image
from fedmed.data.schema import ImageRef
from fedmed.errors import DataError

MISSING, UNREADABLE = "image is missing", "image is unreadable"
OUTSIDE = "image path is absolute or leaves the folder"
# Images in memory: rows about one image stand near each other in every format, and radiographs are large.
_KEPT, _KEPT_BYTES = 64, 1 << 26


class FolderImages:
    """Images of a folder by relative path; a link out of it is as good as missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._bytes = 0

    def load(self, name: str) -> tuple[bytes, str]:
        """The file's bytes and why it cannot be used: MISSING, OUTSIDE, UNREADABLE or nothing."""
        if name not in self._kept:
            self._kept[name] = self._read(name)
            self._bytes += len(self._kept[name][0])
            while len(self._kept) > 1 and (len(self._kept) > _KEPT or self._bytes > _KEPT_BYTES):
                _, (data, _) = self._kept.popitem(last=False)
                self._bytes -= len(data)
        self._kept.move_to_end(name)
        return self._kept[name]

    def _read(self, name: str) -> tuple[bytes, str]:
        if name.startswith("/") or name[1:3] == ":/" or ".." in name.split("/"):
            return b"", OUTSIDE
        try:
            data = read_image(ImageRef(path=name), self._folder)
        except DataError:
            return b"", MISSING
        return data, "" if is_readable(data) else UNREADABLE
