"""Arrays of npz files, whole or row by row, without ever unpickling.

    >>> head = array_head(path, "train_images")
    >>> head.shape, head.dtype
    ((4708, 28, 28), dtype('uint8'))
    >>> first = next(array_rows(path, "train_images"))

| the file                                              | what happens                            |
| ----------------------------------------------------- | --------------------------------------- |
| missing, or without the array                         | DataError naming what there is          |
| not npz, cut off, damaged, or pickled objects in it   | DataError; damage further on, when met  |
| a header that claims more than there is               | DataError; nothing of its size is taken |
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.lib.npyio import NpzFile

from fedmed.errors import DataError

_BLOCK_BYTES = 1 << 20
_BROKEN = (
    *(OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),
    *(SyntaxError, TokenError, MemoryError, OverflowError),  # of a header, which numpy parses as a literal
)


@dataclass(frozen=True)
class Head:
    """What an array's header says of it."""

    dtype: np.dtype
    shape: tuple[int, ...]


def array_names(path: Path) -> list[str]:
    """The sorted names of an npz file's arrays. Raises DataError as `load_array` does."""
    with _open_npz(path) as arrays:
        return sorted(arrays.files)


def load_array(path: Path, key: str) -> np.ndarray:
    """One array of an npz file.

    Raises:
        DataError: no such file or array, not an npz file, damaged, or holding pickled objects, which are refused.
    """
    with _open_npz(path) as arrays:
        if key not in arrays.files:
            raise _lacks(path, key, arrays.files)
        array: np.ndarray = arrays[key]
        return array


def array_head(path: Path, key: str) -> Head:
    """Type and shape of one array. Raises DataError as `load_array` does."""
    with _open_member(path, key) as (_, head):
        return head


def array_rows(path: Path, key: str) -> Iterator[np.ndarray]:
    """The rows of one array, one after the other; memory holds about a megabyte of them. Raises DataError as `load_array`."""
    with _open_member(path, key) as (stream, head):
        row_bytes = head.dtype.itemsize * math.prod(head.shape[1:])
        left = head.shape[0]
        while left:
            count = min(left, max(1, _BLOCK_BYTES // max(1, row_bytes)))
            data = stream.read(count * row_bytes)
            if len(data) != count * row_bytes:
                raise EOFError("the array is cut off")
            yield from np.frombuffer(data, head.dtype).reshape(count, *head.shape[1:])
            left -= count
        if stream.read(1):  # reading the end also checks the sum over the member
            raise ValueError("the array is longer than its header says")


@contextmanager
def _open_member(path: Path, key: str) -> Iterator[tuple[IO[bytes], Head]]:
    """The bytes of an array behind its header."""
    with _readable(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if key not in names:
            raise _lacks(path, key, names)
        with archive.open(archive.namelist()[names.index(key)]) as stream:
            version = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, by_columns, dtype = read(stream)
            if dtype.hasobject or (by_columns and len(shape) > 1 and math.prod(shape[1:]) != 1):
                raise ValueError("expected plain values, row by row")
            yield stream, Head(dtype, shape)


@contextmanager
def _open_npz(path: Path) -> Iterator[NpzFile]:
    with _readable(path), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        if not isinstance(arrays, NpzFile):  # a lone array (.npy) may be a memory map, which `with` also takes
            raise ValueError("not an npz file")
        yield arrays


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except _BROKEN:
        raise DataError(
            f"{path.name} is not a readable npz file of plain arrays", "get it again: it may be cut off"
        ) from None


def _lacks(path: Path, key: str, names: list[str]) -> DataError:
    return DataError(f"{path.name} lacks the array {key}, it has {', '.join(sorted(names)) or 'none'}")
