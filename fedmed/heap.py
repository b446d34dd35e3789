"""Gives memory that is free in the C library's heap back to the system. Where the C library is not glibc, nothing is done.

    large_blocks_apart()                                # once, at a process's start
    with tensors_apart():                               # or as a decorator
        for reply in replies: fold(reply); trim()

Between large blocks that are freed small objects stay, and the heap grows by adapters that nobody holds. glibc asks the system for
every block of 128 KiB or more, until it sees one freed: from then on such a block, up to 32 MiB, comes from the heap.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARY = ctypes.CDLL(None)
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
TENSOR_BYTES, LARGE_BYTES, LARGEST_BYTES = 1 << 17, 1 << 20, 1 << 25


def trim() -> None:
    """Takes milliseconds."""
    if hasattr(_LIBRARY, "malloc_trim"):
        _LIBRARY.malloc_trim(0)


def large_blocks_apart() -> None:
    """From now on a block of LARGE_BYTES or more is the system's again as soon as it is freed."""
    _apart(LARGE_BYTES)


@contextmanager
def tensors_apart() -> Iterator[None]:
    """Inside the block, that holds from TENSOR_BYTES on; then glibc's limit again. Not for computing, which asks for one tensor
    after the other: the system gives none without clearing it first."""
    _apart(TENSOR_BYTES)
    try:
        yield
    finally:
        _apart(LARGEST_BYTES)


def _apart(size: int) -> None:
    if hasattr(_LIBRARY, "mallopt"):
        _LIBRARY.mallopt(_MMAP_THRESHOLD, size)
