"""What patient-level privacy costs in a training step: CPU time a sample with it and without, side by side.

    python -m benchmarks.dp_step --json                                   # the table in docs/benchmarks.md
    python -m benchmarks.dp_step --physical-batch 64 256 --steps 4 --repeat 5

A step draws every phantom of a fixed set once (rate 1), so that both modes do the same forward passes; the modes take
turns within each repetition, since the machine is shared. Prints one JSON object; `ratio` is the median of the ratios
of neighbouring repetitions, milliseconds are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fedmed.data.manifest import Manifest, write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.messages import LoraSpec, OptimizerSpec, PrivacySpec
from fedmed.models.base import BaseModel, load_base
from fedmed.privacy.random import SecureRandom
from fedmed.training.local_round import LocalTrainer
from fedmed.training.steps import RoundPlan

LORA = LoraSpec(8, 16.0, ("language_model", "projector", "vision_tower"), ("all-linear",))
MODES = ("dp", "none")


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    base = load_base(arguments.base, device=arguments.device)
    with tempfile.TemporaryDirectory(prefix="fedmed-bench-") as scratch:
        cohort = write_manifest(
            Path(scratch) / "site", phantom_examples(arguments.patients, 0, domain="hospital", split="train")
        )
        rows = [_compare(base, cohort, size, arguments.steps, arguments.repeat) for size in arguments.physical_batch]
    result = {"base_model": base.name, "device": arguments.device, "threads": arguments.threads, "rows": rows}
    print(json.dumps(result, indent=None if arguments.json else 2))


def _compare(base: BaseModel, cohort: Manifest, physical_batch: int, steps: int, repeat: int) -> dict[str, Any]:
    """Milliseconds of CPU time (of wall time on a GPU) a sample in both modes."""
    trainer = LocalTrainer(base, cohort, SecureRandom())
    plans = {mode: _plan(mode, steps, physical_batch, cohort.num_patients) for mode in MODES}
    samples = steps * len(cohort.examples)
    for plan in plans.values():  # encodes the examples, and shows the allocator the sizes
        trainer.train(plan, {}, 0)
    measured: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(repeat):
        for mode, plan in plans.items():
            started = _clock(base)
            trainer.train(plan, {}, 0)
            measured[mode].append(1e3 * (_clock(base) - started) / samples)
    trainer.close()
    ratio = statistics.median(dp / none for dp, none in zip(measured["dp"], measured["none"], strict=True))
    medians = {f"{mode}_ms": round(statistics.median(values), 3) for mode, values in measured.items()}
    return {"physical_batch": physical_batch, **medians, "ratio": round(ratio, 3)}


def _clock(base: BaseModel) -> float:
    """Seconds: this process's CPU time, or wall time after the GPU has finished."""
    if next(base.model.parameters()).device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _plan(mode: str, steps: int, physical_batch: int, patients: int) -> RoundPlan:
    privacy = PrivacySpec(mode, 1.0, 1.0, 1.0, 4, steps, 1e-5)
    optimizer = OptimizerSpec("adamw", 1e-3, 0.9, 0.0, False)
    return RoundPlan(LORA, privacy, optimizer, ("lora_A", "lora_B"), "float32", physical_batch, float(patients))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="fedmed-tiny", help="fedmed-tiny, a local folder, or a hub id")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--patients", type=int, default=256)
    parser.add_argument("--physical-batch", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one line instead of indented")
    return parser.parse_args()


if __name__ == "__main__":
    main()
