"""Damages valid inputs: bytes, and the structure of JSON. Everything is drawn from the `random.Random` that is given.

>>> rng = Random(0)
>>> damaged = mutate_bytes(rng, b"valid", [b"another valid one"])
>>> value = mutate_json(rng, {"round": 1, "sites": ["north"]})        # a copy, with some of it changed
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Json = Any
# What breaks parsers: edges of types and formats, and values that look like something else.
ODD: tuple[Json, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.0, -0.0, 1e308, -1e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "nan", "null", "../../etc/passwd", "/", "\0", "a\nb", "\ud800",
    "\U0001f600" * 50, "e\u0301", "\u202e", "A" * 5000, "${oc.env:PATH}", "${a}", "${", "%s%n", "{0.__class__}",
    [], {}, [[]], [None], {"": ""}, {"a": {}},
)  # fmt: skip


def mutate_bytes(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One to four changes of the bytes."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(_BYTE_CHANGES)(rng, data, others)
    return data


def mutate_json(rng: Random, value: Json) -> Json:
    """A copy with one to three changes somewhere in it. May hold NaN, huge numbers, half surrogates and deep nesting."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 3)):
        value = _change(rng, value)
    return value


def dump(rng: Random, value: Json, **options: Any) -> bytes:
    """`value` as JSON text, sometimes with a key twice, other spacing, or an unusual but equal spelling."""
    text = json.dumps(value, **options)
    kind = rng.random()
    if kind < 0.05 and text.startswith("{") and len(text) > 2:
        first = text[1:].split(",", 1)[0].rstrip("}")
        text = "{" + first + "," + text[1:]
    elif kind < 0.1:
        text = text.replace(":", rng.choice([" : ", ":\t", ":\n", ": \ufeff"]))
    elif kind < 0.12:
        depth = rng.choice([10, 1000, 100_000])
        text = text.replace("null", "[" * depth + "]" * depth) if "null" in text else "[" * depth
    return text.encode("utf-8", "surrogatepass")


def _change(rng: Random, value: Json) -> Json:
    """Changes `value` itself, or goes one level down."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        return _change_object(rng, dict(value))
    if isinstance(value, list) and value and rng.random() < 0.7:
        return _change_list(rng, list(value))
    return _odd(rng, value)


def _change_object(rng: Random, value: dict[str, Json]) -> dict[str, Json]:
    key = rng.choice(list(value))
    match rng.randrange(8):
        case 0:
            del value[key]
        case 1:
            value[rng.choice(["", "x", key + " ", key.upper(), "__class__", "\ud800"])] = rng.choice(ODD)
        case 2:
            value[rng.choice(list(value))] = value[key]
        case _:
            value[key] = _change(rng, value[key])
    return value


def _change_list(rng: Random, value: list[Json]) -> list[Json]:
    place = rng.randrange(len(value))
    match rng.randrange(5):
        case 0:
            del value[place]
        case 1:
            value.insert(place, rng.choice(ODD))
        case 2:
            value.extend(value[:20] * rng.choice([1, 1, 50]))
        case _:
            value[place] = _change(rng, value[place])
    return value


def _odd(rng: Random, value: Json) -> Json:
    """Something near `value`, of another type, or odd."""
    kind = rng.random()
    if kind < 0.5 and type(value) is int and abs(value) < 2**60:
        return value * rng.choice([-1, 0, 1, 1, 2, 1000]) + rng.choice([0, 1, -1])
    if kind < 0.5 and type(value) is float:
        return value * rng.choice([-1, 0, 2, 1000, 1e-9]) + rng.choice([0, 1, -1, 0.5])
    if kind < 0.5 and isinstance(value, str) and value:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice(["", "\0", " ", "\u00e9", "x" * 300, value]) + value[place + 1 :]
    if kind < 0.6:
        return rng.choice([[value], {"x": value}, str(value), json.dumps(value)])
    return rng.choice(ODD)


def _flip(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    place, size = _span(rng, data)
    new = rng.choice([b"\0", b"\xff", b"\n", b'"', b"{", b"9", rng.randbytes(1)])
    return data[:place] + new * size + data[place + size :]


def _cut(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    place, size = _span(rng, data)
    return rng.choice([data[:place], data[place:], data[:place] + data[place + size :]])


def _duplicate(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    place, size = _span(rng, data)
    return data[: place + size] + data[place : place + size] * rng.choice([1, 1, 2, 20]) + data[place + size :]


def _insert(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    place, _ = _span(rng, data)
    new = rng.choice(
        [b"\0", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\u0000", b"[" * 2000, rng.randbytes(9)]
    )
    return data[:place] + new + data[place:]


def _splice(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else data
    return data[: _span(rng, data)[0]] + other[_span(rng, other)[0] :]


def _number(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A digit somewhere becomes another number."""
    places = [place for place, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
    if not places:
        return data
    place = rng.choice(places)
    new = rng.choice([b"-1", b"0", b"1e999", b"NaN", b"99999999999999999999", b"00", b"1.5", b'"1"', b"true", b"0x1"])
    return data[:place] + new + data[place + 1 :]


def _span(rng: Random, data: bytes) -> tuple[int, int]:
    """A place in the bytes, and how many from there on: mostly few."""
    place = rng.randint(0, len(data))
    return place, min(len(data) - place, rng.choice([1, 2, 4, 8, rng.randint(0, max(1, len(data)))]))


_BYTE_CHANGES: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip,
    _overwrite,
    _cut,
    _duplicate,
    _insert,
    _splice,
    _number,
)
