"""Peak memory of the server over the number of sites: FedMed's round loop and stock Flower 1.39 FedAvg.

    python -m benchmarks.server_memory --json             # 1 to 100 sites of 50 MB, 1,000 of 10 MB, every method: minutes
    python -m benchmarks.server_memory --json --quick     # 1 and 10 sites of 10 MB, within a minute

| what        | how                                                                                                        |
| ----------- | ---------------------------------------------------------------------------------------------------------- |
| a point     | one side with so many sites, two rounds, in a process of its own: benchmarks/server_memory_point.py        |
| its peak    | the most that is resident, less what is after the imports and a run with an adapter of a few bytes, over   |
|             | the bytes of the adapter. What the server itself starts from, the global adapter, is in it                 |
| FedMed      | `run_federation` with `FlowerExchange`: tasks, checks, folding, rounds committed to disk                   |
| stock       | Flower's own `FedAvg.start`, without an evaluation                                                         |
| both        | the same Grid in memory: each reply is made in another process, and becomes bytes here when it is pulled   |
| not counted | what Flower's connection to its SuperLink copies in between, the same for both; a model for the evaluation |

Stock keeps every reply. It is not run with more sites than the machine has memory for; its value is null there.

Prints one object with lists of one length: sites, fedmed_peak_adapters, stock_peak_adapters, and the seconds of each; `many`: the
point of 1,000 sites; `methods`: FedMed's peaks with 5 and 10 sites of 10 MB, by method, encoding, server optimizer, robust rule.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from aggregator.methods import METHODS
from benchmarks.server_memory_point import Point

# Of the memory that is free, stock may take so much.
SHARE = 0.8
VARIANTS = {
    **{name: (f"federation.method={name}", "training.keep_state=false") for name in METHODS},
    "fedsa_lora": ("federation.method=fedsa_lora", "registry.promote=false"),
    "fed_sb": ("federation.method=fed_sb", "lora.core=true"),
    "fedavg bfloat16": ("federation.wire_dtype=bfloat16",),
    "fedavg int8": ("federation.wire_dtype=int8",),
    "fedavg fedavgm": ("federation.server.name=fedavgm",),
    "fedavg fedadam": ("federation.server.name=fedadam",),
    "ffa_lora median": ("federation.method=ffa_lora", "federation.robust.rule=median", "federation.weighting=equal"),
    "fedavg multi_krum": ("federation.robust.rule=multi_krum", "federation.robust.faulty=1"),
}


def main() -> None:
    arguments = _arguments()
    counts, megabytes = ((1, 10), 10.0) if arguments.quick else ((1, 3, 10, 30, 100), 50.0)
    ours = [measured(Point("fedmed", count, megabytes)) for count in counts]
    theirs = [measured(Point("stock", count, megabytes)) if fits(count, megabytes) else {} for count in counts]
    found: dict[str, Any] = {
        "sites": list(counts),
        "fedmed_peak_adapters": [point["peak_adapters"] for point in ours],
        "stock_peak_adapters": [point.get("peak_adapters") for point in theirs],
        "fedmed_seconds": [point["seconds"] for point in ours],
        "stock_seconds": [point.get("seconds") for point in theirs],
        "adapter_megabytes": megabytes,
    }
    if not arguments.quick:
        many = Point("fedmed", 1000, 10.0)
        found["many"] = {"sites": many.sites, "adapter_megabytes": many.megabytes, **measured(many)}
        found["methods"] = {
            name: [measured(Point("fedmed", count, 10.0, overrides))["peak_adapters"] for count in (5, 10)]
            for name, overrides in VARIANTS.items()
        }
    print(json.dumps(found, indent=None if arguments.json else 2))


def measured(point: Point) -> dict[str, float]:
    """A point, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.server_memory_point", json.dumps(dataclasses.asdict(point))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{point.side}, {point.sites} sites, {point.overrides}: {found}", file=sys.stderr, flush=True)
    return found


def fits(sites: int, megabytes: float) -> bool:
    """Whether stock's replies, and a few adapters more, fit the memory that is free."""
    [line] = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:")]
    return (sites + 6) * megabytes * 1e6 < SHARE * 1024 * int(line.split()[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute")
    parser.add_argument("--json", action="store_true", help="one line instead of indented")
    return parser.parse_args()


if __name__ == "__main__":
    main()
