"""A file of JSON that is refused when it nests too deeply, before a parser meets it.

ijson keeps the path to where it stands for every level, so that its memory grows with the square of the depth: 100 kilobytes of
`[` take tens of gigabytes. No format that FedMed reads nests deeper than ten.

    >>> ijson.items(Shallow(file), "item")
"""

from __future__ import annotations

import re
from typing import IO

MAX_DEPTH = 100
_STRING_END = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
# The group is there where the string goes on in the next piece. It must match, too: else the search begins anew at each quote.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|(\\?\Z))', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class TooDeepError(ValueError):
    """The file nests more than MAX_DEPTH levels."""


class Shallow:
    """The bytes of a file as they are. Raises TooDeepError instead of giving those that nest too deeply."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._depth = 0
        self._inside = self._escaped = False  # of a string; behind a backslash in it

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._scan(data)
        return data

    def _scan(self, data: bytes) -> None:
        start = self._string_end(data, 0) if self._inside else 0
        parts = _STRING.split(data[start:])
        for bracket in b"".join(parts[::2]).translate(None, _NO_BRACKETS):
            self._depth += 1 if bracket in b"[{" else -1
            if self._depth > MAX_DEPTH:
                raise TooDeepError
        if len(parts) > 1 and parts[-2] is not None:
            self._inside, self._escaped = True, _odd_backslashes(data)

    def _string_end(self, data: bytes, place: int) -> int:
        """Where the string ends in which `place` lies; the end of the data where it goes on behind it."""
        if self._escaped and data:
            place, self._escaped = place + 1, False
        if found := _STRING_END.match(data, place):
            self._inside = False
            return found.end()
        self._escaped = _odd_backslashes(data[place:])
        return len(data)


def _odd_backslashes(data: bytes) -> bool:
    """Whether what follows is escaped."""
    return (len(data) - len(data.rstrip(b"\\"))) % 2 == 1
