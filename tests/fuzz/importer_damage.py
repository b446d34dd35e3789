"""Damages the files that importers read: their bytes, or their values while they stay of their format.

>>> damaged = damage_file(Random(0), "train.parquet", data)        # other bytes; the format follows from the name's ending
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from tests.fuzz.mutate import ODD, dump, mutate_bytes, mutate_json
from tests.helpers_importers import damaged

_OTHERS = (b"{}", b'[{"a": 1}]', b"a,b\n1,2\n", b"PK\x03\x04", b"PAR1")
_CELLS = [*(value for value in ODD if value != 10**400), "x" * 200_000]
_PARQUET_VALUES: list[Any] = [
    *(None, 3, 1.5, "x", "", " ", b"\xff", b"", [1], [None], "<image>", "x" * 200_000),
    *({"bytes": b"x"}, {"path": "a"}, {"bytes": "text"}, {"bytes": None, "path": "a"}),
]
_SHAPES = [(), (0,), (3,), (5, 1), (5, 14), (5, 8, 8), (5, 8, 8, 3), (5, 8, 8, 4), (2, 0, 8)]
_KINDS = ["u1", "i1", "i8", "u8", "f4", "f2", "b1", "U3", "S2", "c16", "M8[s]", "V2"]
_DIMENSIONS = [-1, 0, 1, 2, 5, 2**31, 2**62, 2**63, 2**64, -(2**63), 10**30]
_BOMB = 300 << 20


def damage_file(rng: Random, name: str, data: bytes) -> bytes:
    """Three in ten times the bytes; of an image always."""
    change = _CHANGES.get(name[name.rfind(".") :])
    if change is None or rng.random() < 0.3:
        return mutate_bytes(rng, data, [data, *_OTHERS])
    return change(rng, data)


def _json(rng: Random, data: bytes) -> bytes:
    if data.lstrip()[:1] == b"{" and b"\n{" in data:  # MMedAgent's names do not say which of both it is
        return _lines(rng, data)
    return _dumped(rng, json.loads(data))


def _dumped(rng: Random, value: Any) -> bytes:
    """With a few changes, or one field of what else a row may hold, such as a text that is too long."""
    changed = damaged(value, rng) if rng.random() < 0.3 else mutate_json(rng, value)
    return dump(rng, changed, ensure_ascii=rng.random() < 0.5)


def _lines(rng: Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if len(lines) == 1:
        return _json(rng, data)
    for place in rng.sample(range(len(lines)), rng.randint(1, 2)):
        lines[place] = _dumped(rng, json.loads(lines[place])) + b"\n"
    return b"".join(lines)


def _table(rng: Random, data: bytes) -> bytes:
    """Cells and names of columns; sometimes a cell more or less, or a row twice."""
    text = data.decode("utf-8-sig")
    sign = "\t" if "\t" in text else ","
    cells = list(csv.reader(io.StringIO(text, newline=""), delimiter=sign))
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(cells)
        place = rng.randrange(len(row))
        match rng.randrange(8):
            case 0:
                row.insert(place, row[place])
            case 1 if len(row) > 1:
                del row[place]
            case 2:
                cells.insert(rng.randrange(len(cells)), list(row))
            case _:
                row[place] = str(rng.choice(_CELLS))
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=rng.choice([sign, sign, sign, ";"])).writerows(cells)
    return written.getvalue().encode("utf-8", "surrogatepass")


def _parquet(rng: Random, data: bytes) -> bytes:
    """A column of another kind or name, or single values replaced, in other codecs and row groups."""
    table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    name = rng.choice(table.column_names)
    if rng.random() < 0.5:
        values = [rng.choice(_PARQUET_VALUES)] * len(table)
    else:
        values = table.column(name).to_pylist()
        if values:
            values[rng.randrange(len(values))] = None
    column = pyarrow.array(values)
    table = table.set_column(table.column_names.index(name), rng.choice([name, name, name, "other"]), column)
    if rng.random() < 0.1:
        table = table.slice(0, 0)
    written = io.BytesIO()
    codec = rng.choice(["snappy", "gzip", "none", "zstd"])
    pyarrow.parquet.write_table(table, written, row_group_size=rng.choice([1, 2, 100]), compression=codec)
    packed = written.getvalue()
    return mutate_bytes(rng, packed, [data]) if rng.random() < 0.3 else packed


def _npz(rng: Random, data: bytes) -> bytes:
    """An array of another kind; a header that claims what is not there; values that the archive's sum does not fit."""
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    key = rng.choice(sorted(arrays))
    members = {name: _npy(array) for name, array in arrays.items()}
    array = arrays[key]
    match rng.randrange(6):
        case 0 | 1:
            other = np.zeros(rng.choice(_SHAPES), rng.choice(_KINDS))
            array = rng.choice([other, np.asfortranarray(array), array[:2], array.astype("i8") - 1, array[::-1]])
            members[key] = _npy(array)
        case 2 | 3:
            members[key] = _claimed(rng, array)
            if rng.random() < 0.02:  # zeros that take a thousandth of their length in the file
                members[key] += bytes(_BOMB)
        case 4:
            members[key] = mutate_bytes(rng, members[key], [members[rng.choice(sorted(members))]])
        case _:
            changed = rng.choice([key, key.upper(), "", "../x", "\udcff"]) if rng.random() < 0.5 else ""
            members = {name if name != key else changed: member for name, member in members.items()}
    return _archive(members, rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA]))


def _claimed(rng: Random, array: np.ndarray) -> bytes:
    """The values under a header that says another shape or type of them."""
    shape: list[Any] = list(array.shape)
    for _ in range(rng.randint(0, 2)):
        shape[rng.randrange(len(shape))] = rng.choice(_DIMENSIONS)
    descr = rng.choice([array.dtype.str, rng.choice(["|O", "|V0", "<U0", "<i8", "|u1", "<f8", "|S0", "|V99999999"])])
    head = f"{{'descr': {descr!r}, 'fortran_order': {rng.random() < 0.2}, 'shape': {tuple(shape)}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    version = rng.choice([b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"])
    length = len(head).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + head + array.tobytes()


def _npy(array: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


def _archive(members: dict[str, bytes], method: int) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(f"{name.encode('utf-8', 'replace').decode()}.npy", member)
    return written.getvalue()


_CHANGES: dict[str, Callable[[Random, bytes], bytes]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
    ".npz": _npz,
}
