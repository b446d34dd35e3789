"""`python -m tests.fuzz`: every target, each in a process of its own, two at a time; status 1 on any finding.

--inputs N    of each target; without it 100,000, and 20,000 of those that read a whole source each time (importers)
--only task,ledger        --seed 0        --input N   that one alone, with its traceback
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

from tests.fuzz.importer_sources import LAYOUTS
from tests.fuzz.run import Tally, in_bounds
from tests.fuzz.targets import TARGETS

INPUTS, FILES = 100_000, 20_000  # of a target; of one for which a whole source is read at each input


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=int, default=-1)
    arguments = parser.parse_args()
    names = [name for name in arguments.only.split(",") if name] or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        sys.exit(f"error: there is no target {unknown[0]!r}\n  hint: expected some of {', '.join(TARGETS)}")
    if arguments.input >= 0:
        again(names[0], arguments.seed, arguments.input)
        return
    inputs = {name: arguments.inputs or (FILES if name in LAYOUTS else INPUTS) for name in names}
    with ProcessPoolExecutor(max_workers=2, max_tasks_per_child=1) as pool:
        running = [pool.submit(in_bounds, name, inputs[name], arguments.seed) for name in names]
        tallies = [show(future.result()) for future in running]
    findings = sum(len(tally.findings) for tally in tallies)
    short = [tally.target for tally in tallies if tally.inputs != inputs[tally.target]]
    print(f"fuzz: {sum(tally.inputs for tally in tallies)} inputs, {findings} findings", flush=True)
    sys.exit(1 if findings or short else 0)


def show(tally: Tally) -> Tally:
    refused = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.refused.items()))
    print(
        f"{tally.target:9} {tally.inputs:7} inputs  accepted {tally.accepted:6}  refused: {refused}  "
        f"slowest {1000 * tally.slowest_s:.0f} ms  most {tally.largest_bytes >> 20} MiB  {tally.seconds:.0f} s",
        flush=True,
    )
    for number, text in tally.findings:
        print(f"  FINDING {text}\n    again: python -m tests.fuzz --only {tally.target} --input {number}", flush=True)
    return tally


def again(name: str, seed: int, number: int) -> None:
    """One input, shown, and what it does."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        target = TARGETS[name](Path(folder))
        made = target.make(Random(f"{name} {seed} {number}"))
        print(f"{made!r:.4000}")
        target.parse(made)


if __name__ == "__main__":
    main()
