"""Gives memory that is free in the C library's heap back to the system. Where the C library is not glibc, nothing is done.

    large_blocks_apart()                                # once, at a process's start
    for reply in replies: fold(reply); trim()

Between large blocks that are freed small objects stay, and the heap grows by adapters that nobody holds: tensors of some hundred
kilobytes between replies, and messages of megabytes, for which glibc stops asking the system once it has seen one of them freed.
"""

from __future__ import annotations

import ctypes

_LIBRARY = ctypes.CDLL(None)
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
LARGE_BYTES = 1 << 20


def trim() -> None:
    """Takes milliseconds."""
    if hasattr(_LIBRARY, "malloc_trim"):
        _LIBRARY.malloc_trim(0)


def large_blocks_apart() -> None:
    """From now on a block of LARGE_BYTES or more is the system's again as soon as it is freed."""
    if hasattr(_LIBRARY, "mallopt"):
        _LIBRARY.mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
