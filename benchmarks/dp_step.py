"""What patient-level privacy costs in a training step: time and peak memory with it and without, side by side.

    python -m benchmarks.dp_step --json                 # the table of docs/benchmarks.md; about ten minutes
    python -m benchmarks.dp_step --json --quick         # small shapes, within a minute
    python -m benchmarks.dp_step --json --device cuda   # on a GPU: up to 7B shapes, bfloat16

The modes (benchmarks/dp_modes.py) take turns in one process, since the machine is shared: CPU time of one thread (wall time on a
GPU), medians of the ratios of neighbouring steps. Prints one object: `cases` [{name, shape, device, time_ratio, memory_ratio,
opacus_hooks_time_ratio, ...}], `worst_time_ratio`, `worst_memory_ratio`, `noise_and_clip_share` (of FedMed's step, the worst).
A ratio of null: Opacus cannot run that case.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from typing import Any

import torch

from benchmarks.dp_modes import MODES
from benchmarks.dp_shapes import CPU, CUDA, QUICK, Case, Shape
from benchmarks.memory import peak_bytes, weight_bytes
from benchmarks.noise_and_clip import measure as noise_and_clip
from benchmarks.noise_and_clip import seconds

MAX_REPEAT = 15


def main() -> None:
    arguments = _arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    shapes = QUICK if arguments.quick else CUDA if device.type == "cuda" else CPU
    chosen = {name: shape for name, shape in shapes.items() if not arguments.cases or name in arguments.cases}
    duration = min(arguments.seconds, 2.0) if arguments.quick else arguments.seconds
    cases = [measure(name, shape, device, duration) for name, shape in chosen.items()]
    result = {
        "device": device.type,
        "threads": arguments.threads,
        "cases": cases,
        "worst_time_ratio": max(case["time_ratio"] for case in cases),
        "worst_memory_ratio": max(case["memory_ratio"] for case in cases),
        "noise_and_clip_share": max(case["noise_and_clip_share"] for case in cases),
    }
    print(json.dumps(result, indent=None if arguments.json else 2))


def measure(name: str, shape: Shape, device: torch.device, duration: float) -> dict[str, Any]:
    """All modes on one shape; about `duration` seconds of steps."""
    case = shape.make(device)
    peaks = {mode: _peak(mode, case, device) for mode in MODES}
    modes = [mode for mode, peak in peaks.items() if peak is not None]
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    began = time.monotonic()
    while len(times["none"]) < 3 or (time.monotonic() - began < duration and len(times["none"]) < MAX_REPEAT):
        for mode in modes:
            with MODES[mode](case) as step:
                times[mode].append(seconds(step, device))
    row: dict[str, Any] = {"name": name, "shape": shape.text, "device": device.type, "steps": len(times["none"])}
    row |= {"none_ms": round(1e3 * statistics.median(times["none"]), 1)}
    row |= {"fedmed_ms": round(1e3 * statistics.median(times["fedmed"]), 1)}
    for mode in MODES:
        if mode != "none":
            prefix = "" if mode == "fedmed" else f"{mode}_"
            row[f"{prefix}time_ratio"] = _ratio(times.get(mode), times["none"])
            row[f"{prefix}memory_ratio"] = _quotient(peaks[mode], peaks["none"])
    alone = noise_and_clip(case.patients, sum(own.numel() for own in case.parameters.values()), device)
    share = (alone["clip_ms"]["flat"] + alone["noise_ms"]) / 1e3 / statistics.median(times["fedmed"])
    row["noise_and_clip_share"] = round(share, 4)
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def _peak(mode: str, case: Case, device: torch.device) -> int | None:
    """Peak bytes of the mode's second step (the first makes AdamW's moments), weights included; None where it fails."""
    try:
        with MODES[mode](case) as step:
            step()
            return peak_bytes(step, device) + weight_bytes(case.model)
    except (RuntimeError, NotImplementedError, ValueError, AttributeError, IndexError) as error:
        if not mode.startswith("opacus"):
            raise
        print(f"{mode}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
        return None


def _ratio(times: list[float] | None, base: list[float]) -> float | None:
    if times is None:
        return None
    return round(statistics.median(own / other for own, other in zip(times, base, strict=True)), 3)


def _quotient(value: int | None, base: int | None) -> float | None:
    return None if value is None or base is None else round(value / base, 3)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="of steps a shape, at least three of each mode")
    parser.add_argument("--cases", nargs="*", default=[], help=f"some of {', '.join(CPU | CUDA)}")
    parser.add_argument("--quick", action="store_true", help="small shapes, within a minute")
    parser.add_argument("--json", action="store_true", help="one line instead of indented")
    return parser.parse_args()


if __name__ == "__main__":
    main()
