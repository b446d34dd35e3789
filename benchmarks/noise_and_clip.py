"""What clipping and noise cost by themselves, whatever the model. Milliseconds, and nanoseconds a number.

    python -m benchmarks.noise_and_clip --json                                            # docs/benchmarks.md; half a minute
    python -m benchmarks.noise_and_clip --patients 8 --numbers 20000000 --device cuda

Prints {device, threads, cases: [{patients, numbers, clip_ms: {rule: ...}, clip_ns, noise_ms, noise_ns, torch_normal_ns}]}.
`numbers`: of the adapter; clip_ns is a number of the [patients, numbers] matrix under flat clipping, noise_ns a number of the sum.
torch_normal_ns: torch's own float64 generator, added to the sum the same way; it is not cryptographic, and stands for comparison.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedmed.privacy.clipping import RULES, clip_and_sum
from fedmed.privacy.noise import add_noise
from fedmed.privacy.random import CPU, SecureRandom

# fedmed-tiny with a batch of 256; a 135M decoder, rank 8 on all linear layers; the same with 8 times the numbers.
CASES = ((256, 70_000), (32, 2_400_000), (4, 20_000_000))
TENSORS = 200
REPEAT = 7


class TorchNormal(SecureRandom):
    """The same shapes from torch's generator, which is seeded and predictable: for comparing speed alone."""

    def normal(self, shape: Sequence[int], device: torch.device = CPU) -> Tensor:
        return torch.randn(tuple(shape), dtype=torch.float64, device=device)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    cases = [(arguments.patients, arguments.numbers)] if arguments.numbers else CASES
    rows = [measure(patients, numbers, device) for patients, numbers in cases]
    result = {"device": device.type, "threads": arguments.threads, "cases": rows}
    print(json.dumps(result, indent=None if arguments.json else 2))


def measure(patients: int, numbers: int, device: torch.device = CPU, repeat: int = REPEAT) -> dict[str, Any]:
    """One row: clipping a [patients, numbers] matrix under every rule, and noise on its sum. They take turns; medians."""
    matrix, total = torch.randn(patients, numbers, device=device), torch.randn(numbers, device=device)
    tensors = min(TENSORS, numbers)
    sizes = [numbers // tensors + (index < numbers % tensors) for index in range(tensors)]
    secure, plain = SecureRandom(), TorchNormal()
    calls: dict[str, Callable[[], Tensor]] = {rule: partial(clip_and_sum, matrix, 1.0, rule, sizes) for rule in RULES}
    calls |= {"noise": partial(add_noise, total, 1.0, secure), "torch_normal": partial(add_noise, total, 1.0, plain)}
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    median = {name: statistics.median(own) for name, own in times.items()}
    return {
        "patients": patients,
        "numbers": numbers,
        "clip_ms": {rule: round(1e3 * median[rule], 2) for rule in RULES},
        "clip_ns": round(1e9 * median["flat"] / (patients * numbers), 3),
        "noise_ms": round(1e3 * median["noise"], 2),
        "noise_ns": round(1e9 * median["noise"] / numbers, 2),
        "torch_normal_ns": round(1e9 * median["torch_normal"] / numbers, 2),
    }


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call: this process's CPU time, or wall time until the GPU has finished."""
    if device.type == "cpu":
        began = time.process_time()
        call()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--patients", type=int, default=32)
    parser.add_argument("--numbers", type=int, default=0, help="of the adapter; without it, three usual sizes")
    parser.add_argument("--json", action="store_true", help="one line instead of indented")
    return parser.parse_args()


if __name__ == "__main__":
    main()
