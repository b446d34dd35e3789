"""Accuracy over epsilon, federated, at the level of patients: one image a patient, and several.

    FEDMED_DATA_DIR=... python -m benchmarks.utility --out runs/utility.jsonl       # hours on two cores; goes on where it stopped

Every line of the file is one run: {cohort, images_per_patient, epsilon, seed, accuracy, ...}. `epsilon` is what was planned
for a patient (null: without privacy). Cohort `single` is the experiment as it stands, one image a patient. Cohort `grouped`
gives every patient IMAGES_PER_PATIENT images of one label; a drawn patient's images are clipped as one.
docs/utility.md shows the curve, `python -m benchmarks.utility_plot` draws it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.in_process import run_in_process
from fedmed.config import Experiment, load_experiment
from fedmed.data.partition import partition
from fedmed.data.schema import Example
from fedmed.data.sources import load_source

IMAGES_PER_PATIENT = 4
EPSILONS = (4.0, None, 0.5, 2.0, 8.0, 1.0)
SEEDS = (0, 1, 2)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    experiment = load_experiment(arguments.experiment, arguments.overrides)
    done = {_key(line) for line in _read(arguments.out)}
    for cohort, epsilon, seed in _plan(arguments.cohorts, arguments.epsilons):
        if (cohort, epsilon, seed) not in done:
            line = run_one(experiment, cohort, epsilon, seed, arguments.split)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def run_one(experiment: Experiment, cohort: str, epsilon: float | None, seed: int, split: str) -> dict[str, Any]:
    """One federated run; its accuracy after the last round is on the public split."""
    started = time.monotonic()
    privacy = dataclasses.replace(experiment.privacy, mode="dp" if epsilon else "none")
    if epsilon:
        privacy = dataclasses.replace(privacy, epsilon=epsilon)
    experiment = dataclasses.replace(experiment, seed=seed, privacy=privacy)
    source = load_source(experiment.data, seed)
    size = IMAGES_PER_PATIENT if cohort == "grouped" else 1
    rule = experiment.partition
    train = group_patients(source.train, size) if size > 1 else source.train
    sites = partition(train, rule.sites, rule.scheme, rule.field, rule.alpha, seed)
    rounds = run_in_process(experiment, sites, getattr(source, split))
    curve = [round(record.scores.accuracy, 4) for record in rounds if record.scores]
    return {
        "experiment": experiment.name,
        "split": split,
        "cohort": cohort,
        "images_per_patient": size,
        "patients": {site: len({example.patient for example in own}) for site, own in sites.items()},
        "epsilon": epsilon,
        "epsilon_spent": max(report.epsilon_total for report in rounds[-1].replies),
        "seed": seed,
        "accuracy": curve[-1],
        "curve": curve,
        "wall_s": round(time.monotonic() - started, 1),
    }


def group_patients(examples: Sequence[Example], size: int) -> list[Example]:
    """The same examples with `size` of one label to each patient (the last patient of a label may have fewer)."""
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_label[example.attributes["label"]].append(example)
    return [
        dataclasses.replace(example, patient=f"{label}-{index // size:05d}")
        for label, own in sorted(by_label.items())
        for index, example in enumerate(own)
    ]


def _plan(cohorts: Sequence[str], epsilons: Sequence[float]) -> Iterator[tuple[str, float | None, int]]:
    """The runs in the order of what is worth most if time runs out."""
    for cohort in cohorts:
        for epsilon in EPSILONS:
            if not epsilons or epsilon in epsilons:
                yield from ((cohort, epsilon, seed) for seed in SEEDS)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _key(line: dict[str, Any]) -> tuple[str, float | None, int]:
    return line["cohort"], line["epsilon"], line["seed"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="pneumonia")
    parser.add_argument("--out", type=Path, default=Path("runs/utility.jsonl"))
    parser.add_argument("--cohorts", nargs="+", choices=["single", "grouped"], default=["single", "grouped"])
    parser.add_argument("--epsilons", nargs="*", type=float, default=[], help="these alone")
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="key=value")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
