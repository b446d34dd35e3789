"""An adapter of 200 MB through the processes of a federation on loopback: the peak memory of each, and the seconds of a round.

    python -m benchmarks.payload --json             # 200 MB, about two minutes
    python -m benchmarks.payload --json --quick     # 50 MB

    ServerApp -> SuperLink -> `fedmed-site connect` -> site daemon, and back: one site, two rounds, nothing is trained

The programs are those of benchmarks/round_overhead.py. A process's peak is the VmHWM that the kernel keeps, less that of the same
program in a run with an adapter of less than a megabyte, over the bytes of the adapter. Each process has the adapter twice in a
round, as task and as reply. Prints one object: payload_bytes, rounds_s, and for each process peak_payloads and peak_bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from aggregator.rounds.store import RoundStore
from aggregator.runs.processes import ProcessGroup
from benchmarks.round_overhead import ROOT, fedmed
from benchmarks.round_overhead_adapter import COLUMNS, LAYERS_KEY, ROWS
from fedmed.errors import FederationError

LAYER_BYTES = 2 * 4 * ROWS * COLUMNS
ROUNDS = 2
LOOK_S = 0.1
# What names a process in its command line.
ROLES = {
    "connector": "hospital_client.cli",
    "daemon": "benchmarks.round_overhead_adapter",
    "superlink": "aggregator.superlink.main",
    "serverapp": "serverapp",
}


def main() -> None:
    arguments = _arguments()
    layers = round((50e6 if arguments.quick else 200e6) / LAYER_BYTES)
    small, _ = passed(1)
    large, seconds = passed(layers)
    print(json.dumps(summary(small, large, layers * LAYER_BYTES, seconds), indent=None if arguments.json else 2))


def summary(small: dict[str, int], large: dict[str, int], payload: int, seconds: list[float]) -> dict[str, Any]:
    """What is printed, of the peaks by process without and with the payload."""
    peaks = {
        role: {"peak_payloads": round((large[role] - small[role]) / payload, 2), "peak_bytes": large[role]}
        for role in sorted(large)
    }
    return {"payload_bytes": payload, "rounds_s": [round(value, 1) for value in seconds], "processes": peaks}


def passed(layers: int) -> tuple[dict[str, int], list[float]]:
    """The peak of each process with an adapter of so many layers, and the seconds of each round."""
    os.environ[LAYERS_KEY] = str(layers)
    with tempfile.TemporaryDirectory(prefix="fm-") as scratch, ProcessGroup(Path(scratch) / "logs") as group:
        folder = Path(scratch) / "run"
        folder.mkdir()
        with watched() as peaks:
            seconds = fedmed(group, folder, ROUNDS, ("north",))
        require_travelled(folder / "rounds", layers * LAYER_BYTES)
    print(f"{layers} layers: {peaks}, {seconds} s", file=sys.stderr, flush=True)
    return peaks, seconds


def require_travelled(rounds: Path, payload: int) -> None:
    """Raises FederationError when a round took fewer bytes down or up than the payload has."""
    for record in RoundStore(rounds).records()[1:]:
        if (least := min(record.bytes_down, record.bytes_up)) < payload:
            raise FederationError(f"round {record.round} carried {least} bytes: this is no measurement of {payload}")


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Fills in the peak of every process below this one, by role, until the end of the block."""
    peaks: dict[str, int] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            for process in psutil.Process().children(recursive=True):
                role, peak = _peak(process)
                if role:
                    peaks[role] = max(peaks.get(role, 0), peak)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peaks
    finally:
        over.set()
        watcher.join()


def _peak(process: psutil.Process) -> tuple[str, int]:
    """Role and peak; no role for a process that is none of these or has ended."""
    try:
        line = " ".join(process.cmdline())
        [peak] = [
            text.split()[1]
            for text in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if text.startswith("VmHWM:")
        ]
    except (psutil.Error, OSError, ValueError):
        return "", 0
    return next((role for role, sign in ROLES.items() if sign in line), ""), 1024 * int(peak)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50 MB instead of 200")
    parser.add_argument("--json", action="store_true", help="one line instead of indented")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    main()
