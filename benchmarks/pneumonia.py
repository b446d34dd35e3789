"""Federated, alone and central training with the same privacy, on real chest X-rays.

    FEDMED_DATA_DIR=... python -m benchmarks.pneumonia --json                       # docs/benchmarks.md
    FEDMED_DATA_DIR=... python -m benchmarks.pneumonia training.rounds=5 --split val --arms federated --seeds 0

Arms: `federated` is the experiment as it stands; `alone` trains each hospital by itself for as many steps and reports
the mean over the hospitals; `central` puts all patients into one place. All three are the same code with other sites.
Prints one JSON object: {experiment, split, arms: {arm: {mean, spread, seeds: [...]}}, zero_shot, majority, ...}.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.in_process import run_in_process
from fedmed.config import Experiment, load_experiment
from fedmed.data.partition import partition
from fedmed.data.schema import Example
from fedmed.data.sources import Source, load_source

ARMS = ("federated", "alone", "central")
Sites = Mapping[str, Sequence[Example]]


def main() -> None:
    arguments = _arguments()
    started = time.monotonic()
    experiment = load_experiment(arguments.experiment, arguments.overrides)
    runs = [run_seed(experiment, seed, arguments.arms, arguments.split) for seed in arguments.seeds]
    result = {
        "experiment": experiment.name,
        "split": arguments.split,
        "seeds": arguments.seeds,
        "epsilon": experiment.privacy.epsilon if experiment.privacy.mode == "dp" else None,
        "zero_shot": runs[0]["zero_shot"],
        "majority": runs[0]["majority"],
        "arms": {arm: _summary([run[arm] for run in runs]) for arm in arguments.arms},
        "max_epsilon_seen": max(run["max_epsilon"] for run in runs),
        "wall_s": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result, indent=None if arguments.json else 2))


def run_seed(experiment: Experiment, seed: int, arms: Sequence[str], split: str) -> dict[str, Any]:
    """Final accuracies of one seed (partition and first A matrices; noise is never seeded)."""
    experiment = dataclasses.replace(experiment, seed=seed)
    source = load_source(experiment.data, seed)
    result: dict[str, Any] = {"max_epsilon": 0.0}
    for arm in arms:
        finals = []
        for sites in _sites_of(arm, experiment, source):
            rounds = run_in_process(_only(experiment, sites), sites, getattr(source, split))
            curve = [round(record.scores.accuracy, 4) for record in rounds if record.scores]
            print(f"seed {seed} {arm} {'+'.join(sites)}: {curve}", file=sys.stderr, flush=True)
            finals.append(curve[-1])
            spent = [report.epsilon_total for report in rounds[-1].replies]
            result["max_epsilon"] = max([result["max_epsilon"], *spent])
            result["zero_shot"] = curve[0]
            result["majority"] = round(rounds[0].scores.majority_accuracy, 4) if rounds[0].scores else None
        result[arm] = statistics.fmean(finals)
    return result


def _sites_of(arm: str, experiment: Experiment, source: Source) -> list[Sites]:
    """The federations that an arm consists of."""
    rule = experiment.partition
    parts = partition(source.train, rule.sites, rule.scheme, rule.field, rule.alpha, experiment.seed)
    if arm == "central":
        return [{"central": source.train}]
    return [parts] if arm == "federated" else [{name: own} for name, own in parts.items()]


def _only(experiment: Experiment, sites: Sites) -> Experiment:
    """The experiment over exactly these sites."""
    return dataclasses.replace(
        experiment,
        partition=dataclasses.replace(experiment.partition, sites=tuple(sites)),
        federation=dataclasses.replace(experiment.federation, quorum=len(sites)),
    )


def _summary(values: list[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 4), "spread": round(spread, 4), "seeds": values}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="pneumonia")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--json", action="store_true", help="one line instead of indented")
    parser.add_argument("overrides", nargs="*", help="key=value")
    arguments = parser.parse_intermixed_args()
    return arguments


if __name__ == "__main__":
    main()
