"""Freed memory is the system's again. In a process of its own: what is set holds until its end."""

import subprocess
import sys

import pytest

from fedmed import heap

# Blocks of 5 MiB, as Flower's chunks are, with something small behind each that stays; then the blocks go.
PROGRAM = """
from pathlib import Path
from fedmed.heap import {call}
{before}()
def resident():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) >> 10
def fill():
    return [(b"x" * (5 << 20), b"y" * 100_000) for _ in range(20)]
del (first := fill())[:]
held = fill()
full = resident()
small = [small for _, small in held]
del held
{after}()
print(full - resident())
"""
glibc = pytest.mark.skipif(not hasattr(heap._LIBRARY, "mallopt"), reason="another C library")


def given_back(call: str, before: str = "int", after: str = "int") -> int:
    """MiB of the 100 that are free again."""
    program = PROGRAM.format(call=call, before=before, after=after)
    return int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


@glibc
def test_large_blocks_go_back_as_soon_as_they_are_freed() -> None:
    assert given_back("large_blocks_apart") < 50  # what it is for
    assert given_back("large_blocks_apart", before="large_blocks_apart") > 90


@glibc
def test_trim_gives_back_what_lies_between() -> None:
    assert given_back("trim", after="trim") > 90
