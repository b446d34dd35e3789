"""The curve of benchmarks/utility.py as a picture and a table.

    python -m benchmarks.utility_plot docs/data/utility.jsonl docs/utility.png         # prints the table of docs/utility.md

The third line of the picture takes the runs on single images and asks what they would have cost a patient with several
images, had each image been drawn and clipped on its own: the epsilon that record-level accounting would have claimed is at
the label, the true one on the axis (fedmed.privacy.record_accounting).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.utility import IMAGES_PER_PATIENT
from fedmed.config import load_experiment
from fedmed.privacy.calibration import plan_noise
from fedmed.privacy.record_accounting import patient_epsilon_of_record_accounting

matplotlib.use("Agg")
from matplotlib import pyplot

Lines = list[dict[str, Any]]
COHORTS = {
    "single": ("one image a patient", "#1f6f8b"),
    "grouped": (f"{IMAGES_PER_PATIENT} images a patient, clipped as one", "#b5651d"),
}


def main() -> None:
    arguments = _arguments()
    lines: Lines = [json.loads(line) for line in arguments.lines.read_text().splitlines()]
    rows = [_row(lines, cohort, epsilon) for cohort, epsilon in _points(lines)]
    print("| cohort | epsilon of a patient | accuracy, mean of seeds | each seed |\n|---|---|---|---|")
    for row in rows:
        each = ", ".join(f"{value:.3f}" for value in row["values"])
        label = "without privacy" if row["epsilon"] is None else f"{row['epsilon']:g}"
        print(f"| {COHORTS[row['cohort']][0]} | {label} | {row['mean']:.3f} | {each} |")
    true = _true_epsilons(rows)
    print(
        "\n| claimed by record-level accounting | noise multiplier | true epsilon of a patient with "
        f"{IMAGES_PER_PATIENT} images |\n|---|---|---|"
    )
    for claimed, (noise, real) in true.items():
        print(f"| {claimed:g} | {noise:.3f} | {real:.2f} |")
    _draw(rows, {claimed: real for claimed, (_, real) in true.items()}, arguments.picture)


def _points(lines: Lines) -> list[tuple[str, float | None]]:
    found = {(line["cohort"], line["epsilon"]) for line in lines}
    return sorted(found, key=lambda point: (point[0] == "grouped", point[1] is None, point[1] or 0.0))


def _row(lines: Lines, cohort: str, epsilon: float | None) -> dict[str, Any]:
    own = {line["seed"]: line["accuracy"] for line in lines if (line["cohort"], line["epsilon"]) == (cohort, epsilon)}
    values = [own[seed] for seed in sorted(own)]
    return {"cohort": cohort, "epsilon": epsilon, "values": values, "mean": statistics.fmean(values)}


def _true_epsilons(rows: list[dict[str, Any]]) -> dict[float, tuple[float, float]]:
    """Claimed epsilon -> noise multiplier, and what a patient with several images would really have lost."""
    experiment = load_experiment("pneumonia")
    privacy, training = experiment.privacy, experiment.training
    steps = training.rounds * training.local_steps
    result = {}
    for claimed in sorted({row["epsilon"] for row in rows if row["epsilon"]}):
        noise = plan_noise(claimed, privacy.delta, privacy.sample_rate, steps)
        real = patient_epsilon_of_record_accounting(
            noise, privacy.sample_rate, steps, records_per_patient=IMAGES_PER_PATIENT, delta=privacy.delta
        )
        result[claimed] = (noise, real)
    return result


def _draw(rows: list[dict[str, Any]], true: dict[float, float], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 5.4), dpi=120)
    for cohort, (label, colour) in COHORTS.items():
        own = [row for row in rows if row["cohort"] == cohort and row["epsilon"]]
        if own:
            _line(axes, [row["epsilon"] for row in own], own, label, colour, "o-")
    single = [row for row in rows if row["cohort"] == "single" and row["epsilon"] in true]
    label = f"{IMAGES_PER_PATIENT} images a patient, each accounted on its own: the true epsilon"
    _line(axes, [true[row["epsilon"]] for row in single], single, label, "#9b2335", "x--")
    for row in single:
        text = f"claimed {row['epsilon']:g}"
        axes.annotate(
            text,
            (true[row["epsilon"]], row["mean"]),
            (0, -16),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            color="#9b2335",
        )
    for row in rows:
        if row["epsilon"] is None:
            axes.axhline(row["mean"], color="#555555", linestyle=":", label=f"without privacy: {row['mean']:.3f}")
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 4, 8, 16, 32, 64]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("epsilon of a patient, at delta 1e-5")
    axes.set_ylabel("test accuracy after the last round")
    axes.set_title("PneumoniaMNIST, three hospitals, federated")
    axes.grid(alpha=0.3)
    figure.legend(loc="lower center", ncol=2, fontsize=8)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path)


def _line(axes: Any, at: list[float], rows: list[dict[str, Any]], label: str, colour: str, style: str) -> None:
    """Means, with the range of the seeds."""
    axes.plot(at, [row["mean"] for row in rows], style, color=colour, label=label)
    axes.vlines(at, [min(row["values"]) for row in rows], [max(row["values"]) for row in rows], color=colour, alpha=0.4)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, help="what benchmarks.utility wrote")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
