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
_STRING = re.compile(rb'"' + _STRING_END.pattern, re.DOTALL)
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
        plain, quote, _ = _STRING.sub(b"", data[start:]).partition(b'"')
        for bracket in plain.translate(None, _NO_BRACKETS):
            self._depth += 1 if bracket in b"[{" else -1
            if self._depth > MAX_DEPTH:
                raise TooDeepError
        if quote:  # of a string that goes on in the next piece
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
