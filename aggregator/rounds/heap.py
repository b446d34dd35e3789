"""Gives what is free in the C library's heap back to the system.

    for reply in replies: fold(reply); trim()

Tensors of some hundred kilobytes come from the heap. Between replies small objects stay in the holes that freed tensors leave,
and over many replies the heap grows by adapters that nobody holds. Where the C library is not glibc, nothing is done.
"""

from __future__ import annotations

import ctypes

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def trim() -> None:
    """Takes milliseconds."""
    if _TRIM is not None:
        _TRIM(0)
