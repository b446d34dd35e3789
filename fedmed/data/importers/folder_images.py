"""The image files that rows of a source name: each read and checked once while rows about it follow each other."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from fedmed.data.images import is_readable, read_image
from fedmed.data.schema import ImageRef
from fedmed.errors import DataError

MISSING, UNREADABLE = "image is missing", "image is unreadable"
OUTSIDE = "image path is absolute or leaves the folder"
_KEPT = 64  # images in memory: rows about one image stand near each other in every format


class FolderImages:
    """Images of a folder by relative path; a link out of it is as good as missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: OrderedDict[str, tuple[bytes, str]] = OrderedDict()

    def load(self, name: str) -> tuple[bytes, str]:
        """The file's bytes and why it cannot be used: MISSING, OUTSIDE, UNREADABLE or nothing."""
        if name not in self._kept:
            self._kept[name] = self._read(name)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
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
