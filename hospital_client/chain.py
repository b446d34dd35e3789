"""Lines that hold each other: what a journal is made of. Pure: bytes in, bytes out.

    body -> seal -> b'{"sequence", "time", ...body, "previous", "hash"}\n' -> whole_lines -> Line, Line, ...

`hash` is an HMAC-SHA256 with the site's key over the line, which holds the hash of the line before: nobody without the
key can change, drop or reorder a line, and the last line stands for all before it.

    >>> first, data = seal(b"key", {"kind": "reserve"}, [])
    >>> whole_lines(data + data[:20], b"key") == ([first], data[:20])
    True
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class Line:
    """One verified line: its number (from 1), its hash, and what was appended."""

    sequence: int
    hash: str
    body: dict[str, Any]


def seal(key: bytes, body: dict[str, Any], before: Sequence[Line]) -> tuple[Line, bytes]:
    """The line that comes after `before`, and its bytes."""
    line = {
        **body,
        "sequence": len(before) + 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "previous": before[-1].hash if before else GENESIS,
    }
    digest = _mac(key, line)
    return Line(line["sequence"], digest, line), _canonical({**line, "hash": digest}) + b"\n"


def whole_lines(raw: bytes, key: bytes) -> tuple[list[Line], bytes]:
    """The lines from the first on that are whole and in their place, and the bytes from the first one that is not."""
    lines: list[Line] = []
    start = 0
    while (end := raw.find(b"\n", start)) >= 0:
        line = verify(raw[start:end], lines, key)
        if line is None:
            break
        lines.append(line)
        start = end + 1
    return lines, raw[start:]


def verify(piece: bytes, before: Sequence[Line], key: bytes) -> Line | None:
    """A line without its end, or None when it is not, to the byte, what `seal` would have put after `before`."""
    number, previous = len(before) + 1, before[-1].hash if before else GENESIS
    try:
        line = json.loads(piece)
        whole = _canonical(line) == piece and line["sequence"] == number and line["previous"] == previous
        digest = line.pop("hash")
        whole = whole and hmac.compare_digest(digest, _mac(key, line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Line(number, digest, line) if whole else None


def _mac(key: bytes, line: dict[str, Any]) -> str:
    return hmac.new(key, _canonical(line), hashlib.sha256).hexdigest()


def _canonical(line: dict[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
