"""Feeds a target, and says what came out: accepted, refused by a named error, or a finding.

| what a parser does with an input              | counts as                          |
| --------------------------------------------- | ---------------------------------- |
| returns                                       | accepted                           |
| raises a subclass of FedMedError              | refused                            |
| raises anything else, FedMedError itself too  | finding                            |
| takes more than SLOW_S, or MOST_BYTES         | finding                            |
| asks for more than MEMORY_BYTES               | finding: the kernel refuses it     |
"""

from __future__ import annotations

import logging
import resource
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fedmed.errors import FedMedError
from tests.fuzz.targets import TARGETS

SLOW_S = 5.0  # on a machine that does other things; a parser that blows up takes minutes
MOST_FINDINGS = 10
MEMORY_BYTES = 4 << 30  # what a process may map beyond what it has when it begins
MOST_BYTES = (
    256 << 20
)  # of memory, beyond what there was before: an input has kilobytes, an image of the most pixels 200 MB


@dataclass
class Tally:
    """What came out of one target's inputs. `findings`: the number of the input, and what was wrong."""

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    findings: list[tuple[int, str]] = field(default_factory=list)
    slowest_s: float = 0.0
    largest_bytes: int = 0
    seconds: float = 0.0


def fuzz(name: str, inputs: int, seed: int = 0, first: int = 0) -> Tally:
    """Inputs `first` to `first + inputs` of a target, each from a generator of its own; stops after ten findings."""
    tally, begin = Tally(name), time.monotonic()
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fuzz", dir=in_memory) as folder:
        target = TARGETS[name](Path(folder))
        for number in range(first, first + inputs):
            made = target.make(Random(f"{name} {seed} {number}"))
            memory, started = Memory(), time.monotonic()
            try:
                target.parse(made)
                tally.accepted += 1
            except FedMedError as error:
                kind = type(error).__name__
                tally.refused[kind] = tally.refused.get(kind, 0) + 1
                if type(error) is FedMedError:
                    tally.findings.append((number, "an error without a name of its own"))
            except Exception as error:  # noqa: BLE001  that is what is looked for
                tally.findings.append((number, f"{type(error).__name__}: {str(error)[:200]}"))
            took = time.monotonic() - started
            tally.slowest_s = max(tally.slowest_s, took)
            if took > SLOW_S:
                tally.findings.append((number, f"took {took:.1f} s"))
            tally.largest_bytes = max(tally.largest_bytes, taken := memory.taken())
            if taken > MOST_BYTES:
                tally.findings.append((number, f"took {taken >> 20} MiB of memory"))
            tally.inputs += 1
            if len(tally.findings) >= MOST_FINDINGS:
                break
    tally.seconds = time.monotonic() - begin
    return tally


class Memory:
    """How much more memory the process had, at the most, than when this was made. Linux keeps the number, and sets it back."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _most_bytes()

    def taken(self) -> int:
        return _most_bytes() - self._before


def _most_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def in_bounds(name: str, inputs: int, seed: int = 0) -> Tally:
    """`fuzz` in a process of its own, which cannot take all of the machine's memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    logging.getLogger("fedmed").setLevel(logging.CRITICAL)  # a site says every refusal
    return fuzz(name, inputs, seed)
