"""Which aggregation method is best: all arms at equal tuning effort, on two tasks, with and without privacy.

    python -m benchmarks.methods --json                          the table of the runs in docs/data/methods.jsonl
    python -m benchmarks.methods --run tune core grid            does what is missing there, then the table
    python -m benchmarks.methods --run grid --arms ffa_lora      all cells for an arm that was not among the best
    python -m benchmarks.methods --quick --json                  a few small runs from scratch, within a minute

A run is a whole federation in one process (benchmarks/in_process.py): the sites' own code and ledgers, one loaded base model.
Stages: `tune` picks each arm's learning rate on the validation split; `core` runs all arms with three seeds in one cell of each
task, with privacy and without; `grid` runs the arms that were best there in all cells. Every run is appended to the results as
it ends, under a key that says what it was, so a stage goes on where it was stopped.

{cases: [{method, task, sites, dirichlet, epsilon, mean, spread, seeds, learning_rate}]}: epsilon 0 is without privacy; mean and
spread (standard deviation over seeds) of the accuracy on the test split after the last round.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.methods_arms import ARMS, CELLS, CORE, Cell, Job, experiment_of, final_jobs, tuning_jobs
from benchmarks.methods_tasks import load_task

RESULTS = Path(__file__).parents[1] / "docs" / "data" / "methods.jsonl"
BEST = 4  # so many arms of each privacy class go through the whole grid
QUICK = ("training.rounds=2", "training.local_steps=2")
Row = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    if arguments.quick:
        jobs = [Job(arm, Cell("pneumonia", 3, 0.5, 4.0), 0, 1.6e-2, "val") for arm in ("fedavg", "ffa_lora")]
        print(json.dumps({"cases": table([run(job, QUICK) for job in jobs])}))
        return
    for stage in arguments.run:
        rows = read(arguments.results)
        missing = [job for job in jobs_of(stage, rows, arguments.arms) if job.key not in {row["key"] for row in rows}]
        run_all(missing, arguments.results, arguments.workers)
    cases = table(read(arguments.results))
    print(json.dumps({"cases": cases}) if arguments.json else markdown(cases))


def jobs_of(stage: str, rows: Sequence[Row], arms: Sequence[str]) -> Iterable[Job]:
    """The runs of a stage, given what the stages before it found. `arms`: empty for all, and in the grid for the best."""
    if stage == "tune":
        return list(tuning_jobs(arms or list(ARMS)))
    rates = best_rates(rows)
    if stage == "core":
        return list(final_jobs(arms or list(ARMS), CORE, rates))
    leaders = {private: list(arms) for private in (True, False)} if arms else best_arms(rows)
    return [
        job
        for private in (True, False)
        for job in final_jobs(leaders[private], [cell for cell in CELLS if cell.private == private], rates)
    ]


def best_rates(rows: Sequence[Row]) -> dict[tuple[str, str, bool], float]:
    """(arm, task, private) -> the learning rate with the best validation score; the smaller one of equals."""
    tried: dict[tuple[str, str, bool], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row["split"] == "val":
            tried[row["method"], row["task"], row["epsilon"] > 0].append((row["score"], -row["learning_rate"]))
    return {key: -max(scores)[1] for key, scores in tried.items()}


def best_arms(rows: Sequence[Row]) -> dict[bool, list[str]]:
    """private -> the arms with the best mean over the core cells, best first."""
    core = {(cell.task, cell.sites, cell.alpha, cell.epsilon) for cell in CORE}
    scores: dict[tuple[bool, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["split"] == "test" and (row["task"], row["sites"], row["dirichlet"], row["epsilon"]) in core:
            scores[row["epsilon"] > 0, row["method"]].append(row["score"])
    order = sorted(scores, key=lambda key: -statistics.fmean(scores[key]))
    return {private: [arm for own, arm in order if own == private][:BEST] for private in (True, False)}


def run(job: Job, extra: Sequence[str] = ()) -> Row:
    """One federation; its row of results."""
    import torch

    from benchmarks.in_process import run_in_process, score_adapter
    from fedmed.data.manifest import write_manifest
    from fedmed.data.partition import partition
    from fedmed.metrics.scores import Scores
    from fedmed.models.adapter import State

    torch.set_num_threads(1)
    started, source, cell = time.monotonic(), load_task(job.cell.task), job.cell
    experiment, shared = experiment_of(job, extra), _shared()
    sites = partition(source.train, experiment.partition.sites, "dirichlet", "label", cell.alpha, job.seed)
    held_out = source.val if job.split == "val" else source.test

    def score(number: int, state: State) -> Scores:
        """Of the last round alone: the others cost as much and are not looked at."""
        if number < experiment.rounds:
            return Scores(len(held_out), None, None, None, 0.0, 0.0)
        return score_adapter(experiment, shared, state, write_manifest(Path(scratch), held_out))

    import tempfile

    with tempfile.TemporaryDirectory(prefix="fedmed-methods-") as scratch:
        rounds = run_in_process(experiment, sites, held_out, shared, score)
    last = rounds[-1]
    scores = last.scores or Scores(0, None, None, None, math.nan, math.nan)
    return {
        "key": job.key,
        "method": job.arm,
        "task": cell.task,
        "sites": cell.sites,
        "dirichlet": cell.alpha,
        "epsilon": cell.epsilon,
        "seed": job.seed,
        "learning_rate": job.rate,
        "split": job.split,
        "score": round(scores.accuracy, 4),
        "majority": round(scores.majority_accuracy, 4),
        "spent": round(max((report.epsilon_total for report in last.replies), default=0.0), 3),
        "skipped": sum(record.skipped for record in rounds),
        "wall_s": round(time.monotonic() - started, 1),
        "commit": _commit(),
    }


_SHARED: list[Any] = []


def _shared() -> Any:
    """This process's base model, loaded once."""
    if not _SHARED:
        from fedmed.models.base import load_base
        from fedmed.training.adapted import AdaptedBase

        _SHARED.append(AdaptedBase(load_base("fedmed-tiny", device="cpu")))
    return _SHARED[0]


def run_all(jobs: Sequence[Job], results: Path, workers: int) -> None:
    """Every job, appended to the results as it ends."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(run, job): job for job in jobs}
        for number, done in enumerate(as_completed(waiting), start=1):
            job = waiting[done]
            if (error := done.exception()) is not None:
                print(f"{number}/{len(jobs)} {job.key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            row = done.result()
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
            print(f"{number}/{len(jobs)} {job.key}: {row['score']} in {row['wall_s']} s", file=sys.stderr, flush=True)


def read(results: Path) -> list[Row]:
    """The rows so far; a run that was done twice counts once, the last."""
    if not results.exists():
        return []
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return list({row["key"]: row for row in rows}.values())


def table(rows: Sequence[Row]) -> list[Row]:
    """One case for each arm and cell: mean and spread over seeds, on the test split where there are such runs."""
    split = "test" if any(row["split"] == "test" for row in rows) else "val"
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    names = ("method", "task", "sites", "dirichlet", "epsilon")
    for row in rows:
        if row["split"] == split:
            groups[tuple(row[name] for name in names)].append(row)
    return [
        dict(zip(names, group, strict=True)) | _summary(sorted(own, key=lambda row: int(row["seed"])))
        for group, own in sorted(groups.items(), key=lambda item: item[0])
    ]


def _summary(rows: Sequence[Row]) -> Row:
    scores = [row["score"] for row in rows]
    return {
        "mean": round(statistics.fmean(scores), 4),
        "spread": round(statistics.stdev(scores), 4) if len(scores) > 1 else 0.0,
        "seeds": scores,
        "learning_rate": rows[0]["learning_rate"],
        "majority": rows[0]["majority"],
        "split": rows[0]["split"],
    }


def markdown(cases: Sequence[Row]) -> str:
    """The table for docs: a line an arm, a column a cell."""
    cells = sorted({(case["task"], case["epsilon"], case["sites"], -case["dirichlet"]) for case in cases})
    heads = [f"{task} e={epsilon or 'none'} K={sites} a={-alpha:g}" for task, epsilon, sites, alpha in cells]
    found = {
        (case["method"], (case["task"], case["epsilon"], case["sites"], -case["dirichlet"])): case for case in cases
    }
    lines = ["| method | " + " | ".join(heads) + " |", "|" + " --- |" * (len(heads) + 1)]
    for arm in [arm for arm in ARMS if any(case["method"] == arm for case in cases)]:
        own = [found.get((arm, cell)) for cell in cells]
        lines.append(
            f"| {arm} | " + " | ".join(f"{one['mean']:.3f} ± {one['spread']:.3f}" if one else "" for one in own) + " |"
        )
    return "\n".join(lines)


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", choices=["tune", "core", "grid"], default=[])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="two arms, two short rounds, into no file")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
