"""What an encoding of the adapter saves on the wire, and what it costs in accuracy, on real chest X-rays.

    FEDMED_DATA_DIR=... python -m benchmarks.wire --json                  # docs/benchmarks.md, "Bytes on the wire"
    python -m benchmarks.wire --json --quick                              # one short round on phantoms, within a minute

Every case is experiment `pneumonia` in one process (benchmarks/in_process.py): three hospitals, epsilon 4, the test split.
Noise and draws come from the seed, so all cases of a seed share them: differences are the method's and the encoding's. That takes
the guarantee away, and is why it is done on public data alone.

| printed               | is                                                                                             |
| --------------------- | ---------------------------------------------------------------------------------------------- |
| bytes_ratio           | bytes of a round, frames down and up over all sites, against fedavg in float32                 |
| accuracy_drop_points  | percentage points lost by the encoding: against the same method in float32, mean of the seeds  |
| drop_spread           | its standard deviation over the seeds                                                          |
| against_fedavg_points | percentage points lost against fedavg in float32: what method and encoding lose together       |

With --keep FOLDER each finished run is written there and not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.in_process import run_in_process
from fedmed.config import load_experiment
from fedmed.data.partition import partition
from fedmed.data.sources import load_source


class Case(NamedTuple):
    method: str
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.method}_{self.dtype}"


WHOLE = Case("fedavg", "float32")
CASES = (
    WHOLE,
    Case("ffa_lora", "float32"),
    Case("ffa_lora", "bfloat16"),
    Case("ffa_lora", "int8"),
    Case("fedavg", "bfloat16"),
    Case("fedavg", "int8"),
)
QUICK = (
    "data.source=phantom",
    "data.train_patients=60",
    "data.test_patients=40",
    "training.rounds=1",
    "training.local_steps=1",
)


class Run(NamedTuple):
    """One case and seed: final accuracy in 0..1, and bytes of a round on average."""

    accuracy: float
    round_bytes: float


def main() -> None:
    arguments = _arguments()
    begin = time.monotonic()
    cases = [case for case in CASES if not arguments.cases or case.name in arguments.cases]
    overrides = [*(QUICK if arguments.quick else ()), *arguments.overrides]
    runs: dict[Case, dict[int, Run]] = {case: {} for case in cases}
    for seed in arguments.seeds:
        for case in cases:
            runs[case][seed] = kept_run(case, seed, overrides, arguments.keep)
            print(f"seed {seed} {case.name}: {runs[case][seed]}", file=sys.stderr, flush=True)
    result = {
        "experiment": "pneumonia",
        "overrides": overrides,
        "seeds": arguments.seeds,
        "cases": [summary(case, runs) for case in cases],
        "wall_s": round(time.monotonic() - begin, 1),
    }
    print(json.dumps(result, indent=None if arguments.json else 2))


def kept_run(case: Case, seed: int, overrides: Sequence[str], keep: Path | None) -> Run:
    """`run`, or what an earlier call left in `keep`."""
    if keep is None:
        return run(case, seed, overrides)
    path = keep / f"{case.name}-{seed}.json"
    if not path.exists():
        found = run(case, seed, overrides)._asdict()
        keep.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**found, "overrides": list(overrides)}))
    found = json.loads(path.read_text())
    if found.pop("overrides") != list(overrides):
        raise SystemExit(f"{path} is of other overrides: choose another --keep folder")
    return Run(**found)


def run(case: Case, seed: int, overrides: Sequence[str]) -> Run:
    """One federation from the first round to the last."""
    settings = [
        f"federation.method={case.method}",
        f"federation.wire_dtype={case.dtype}",
        f"privacy.insecure_noise_seed={seed}",
        f"seed={seed}",
    ]
    experiment = load_experiment("pneumonia", [*overrides, *settings])
    source, rule = load_source(experiment.data, seed), experiment.partition
    sites = partition(source.train, rule.sites, rule.scheme, rule.field, rule.alpha, seed)
    records = run_in_process(experiment, sites, source.test)
    if any(record.skipped for record in records) or records[-1].scores is None:
        raise SystemExit(f"{case.name}, seed {seed}: a round was skipped: {records[-1].left_out}")
    sizes = [record.bytes_up + record.bytes_down for record in records[1:]]
    return Run(records[-1].scores.accuracy, statistics.fmean(sizes))


def summary(case: Case, runs: Mapping[Case, Mapping[int, Run]]) -> dict[str, Any]:
    """One line of the result; what it is compared with is None where that was not run."""
    own, plain, whole = runs[case], runs.get(Case(case.method, "float32")), runs.get(WHOLE)
    accuracies = [found.accuracy for found in own.values()]
    drops, all_drops = _drops(own, plain), _drops(own, whole)
    sizes = None if whole is None else [own[seed].round_bytes / whole[seed].round_bytes for seed in own]
    return {
        "name": case.name,
        "bytes_ratio": None if sizes is None else round(statistics.fmean(sizes), 4),
        "accuracy_drop_points": None if drops is None else round(statistics.fmean(drops), 3),
        "drop_spread": None if drops is None else round(_spread(drops), 3),
        "drops": drops,
        "against_fedavg_points": None if all_drops is None else round(statistics.fmean(all_drops), 3),
        "mean": round(statistics.fmean(accuracies), 4),
        "spread": round(_spread(accuracies), 4),
        "seeds": [round(accuracy, 4) for accuracy in accuracies],
        "round_bytes": round(statistics.fmean(found.round_bytes for found in own.values())),
    }


def _drops(own: Mapping[int, Run], other: Mapping[int, Run] | None) -> list[float] | None:
    """Percentage points that each seed lost against the other case."""
    if other is None:
        return None
    return [round(100 * (other[seed].accuracy - found.accuracy), 3) for seed, found in own.items()]


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="default: 0 1 2, with --quick 0")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], default=[])
    parser.add_argument("--keep", type=Path, help="folder of finished runs, which are not run again")
    parser.add_argument("--quick", action="store_true", help="phantoms, one round of one step, one seed")
    parser.add_argument("--json", action="store_true", help="one line instead of indented")
    parser.add_argument("overrides", nargs="*", help="key=value")
    arguments = parser.parse_intermixed_args()
    arguments.seeds = arguments.seeds or ([0] if arguments.quick else [0, 1, 2])
    return arguments


if __name__ == "__main__":
    main()
