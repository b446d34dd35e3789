"""Freed memory is the system's again. In a process of its own: what is set holds until its end."""

import subprocess
import sys

import pytest

from fedmed import heap

# Blocks with something small behind each that stays; then the blocks go.
PROGRAM = """
from pathlib import Path
from fedmed import heap
def resident():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) >> 10
def fill():
    return [(b"x" * {size}, b"y" * 100_000) for _ in range({mebibytes} * (1 << 20) // {size})]
{before}
del (first := fill())[:]
held = fill()
full = resident()
small = [small for _, small in held]
del held
{after}
print(full - resident())
"""
MEBIBYTES, CHUNK, TENSOR = 100, 5 << 20, 1 << 18
glibc = pytest.mark.skipif(not hasattr(heap._LIBRARY, "mallopt"), reason="another C library")


def given_back(size: int, before: str = "", after: str = "") -> int:
    """MiB of the MEBIBYTES that the system has again."""
    program = PROGRAM.format(mebibytes=MEBIBYTES, size=size, before=before, after=after)
    return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


@glibc
@pytest.mark.parametrize(
    ("size", "before"),
    [(CHUNK, "heap.large_blocks_apart()"), (TENSOR, "block = heap.tensors_apart(); block.__enter__()")],
)
def test_blocks_go_back_as_soon_as_they_are_freed(size: int, before: str) -> None:
    assert given_back(size) < MEBIBYTES / 2  # what it is for
    assert given_back(size, before) > 0.9 * MEBIBYTES


@glibc
def test_trim_gives_back_what_lies_between() -> None:
    assert given_back(CHUNK, after="heap.trim()") > 0.9 * MEBIBYTES


def test_after_the_block_the_limit_is_glibcs(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(heap, "_apart", limits.append)
    with heap.tensors_apart():
        assert limits == [heap.TENSOR_BYTES]
    assert limits == [heap.TENSOR_BYTES, heap.LARGEST_BYTES]
