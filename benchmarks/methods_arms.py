"""What is compared, on what, and how every arm is tuned: the grid of `python -m benchmarks.methods`. Pure.

An arm is an aggregation method with what wraps it. A cell is a task shared out among sites under a privacy level. Every arm
gets the same tuning: RATES, the same four learning rates, each once on the validation split in the CORE cell of its task and
privacy class, at a seed that is used for nothing else. The best rate then serves all cells of that task and class.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.methods_tasks import TASKS
from fedmed.config import Experiment, load_experiment

# private -> learning rates. AdamW on clipped and noisy gradients bears, and needs, larger ones.
RATES = {True: (4e-3, 8e-3, 1.6e-2, 3.2e-2), False: (1e-3, 3e-3, 9e-3, 2.7e-2)}
SEEDS = (0, 1, 2)
TUNING_SEED = 100
SITES, ALPHAS, EPSILONS = (3, 10), (0.5, 0.1), (4.0, 2.0, 0.0)  # epsilon 0: without privacy
# The same work for every arm: 25 steps, about 94 (pneumonia) and 48 (phantoms) patients a step over all sites.
COMMON = ("training.rounds=5", "training.local_steps=5", "privacy.sample_rate=0.02", "privacy.max_grad_norm=0.3")
_SERVER = {"fedavgm": 1.0, "fedadam": 1e-2, "fedyogi": 1e-2}  # learning rates of Reddi et al.'s order of size
# These give the sites another basis each round: an optimizer state of the old one would mean nothing.
_FRESH = "training.keep_state=false"

ARMS: dict[str, tuple[str, ...]] = {
    "fedavg": ("federation.method=fedavg",),
    "ffa_lora": ("federation.method=ffa_lora",),
    "rolora": ("federation.method=rolora",),
    "fedsvd": ("federation.method=fedsvd", _FRESH),
    "fedex_lora": ("federation.method=fedex_lora",),
    "flexlora": ("federation.method=flexlora", _FRESH),
    "flora": ("federation.method=flora", _FRESH),
    "fed_sb": ("federation.method=fed_sb", "lora.core=true"),
    "ffa_lora+fedprox": ("federation.method=ffa_lora", "federation.proximal_mu=0.01"),
    **{
        f"ffa_lora+{name}": (
            "federation.method=ffa_lora",
            f"federation.server.name={name}",
            f"federation.server.learning_rate={rate}",
        )
        for name, rate in _SERVER.items()
    },
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A task over so many sites, with a Dirichlet concentration and an epsilon."""

    task: str
    sites: int
    alpha: float
    epsilon: float

    @property
    def private(self) -> bool:
        return self.epsilon > 0


@dataclass(frozen=True, slots=True)
class Job:
    """One run."""

    arm: str
    cell: Cell
    seed: int
    rate: float
    split: str

    @property
    def key(self) -> str:
        """Names the run in the results' file."""
        cell = self.cell
        return f"{self.arm} {cell.task} {cell.sites} {cell.alpha:g} {cell.epsilon:g} {self.seed} {self.rate:g} {self.split}"


CELLS = tuple(Cell(*values) for values in itertools.product(TASKS, SITES, ALPHAS, EPSILONS))
# One of each task with privacy and one without.
CORE = tuple(cell for cell in CELLS if cell.sites == 3 and cell.alpha == 0.5 and cell.epsilon in (4.0, 0.0))


def tuning_jobs(arms: Sequence[str]) -> Iterator[Job]:
    """Every learning rate of every arm, once."""
    for cell, arm in itertools.product(CORE, arms):
        for rate in RATES[cell.private]:
            yield Job(arm, cell, TUNING_SEED, rate, "val")


def final_jobs(arms: Sequence[str], cells: Sequence[Cell], rates: dict[tuple[str, str, bool], float]) -> Iterator[Job]:
    """Every seed of the arms in `cells`, at the rates that tuning chose: (arm, task, private) -> rate."""
    for seed, cell, arm in itertools.product(SEEDS, cells, arms):
        if (rate := rates.get((arm, cell.task, cell.private))) is not None:
            yield Job(arm, cell, seed, rate, "test")


def experiment_of(job: Job, extra: Sequence[str] = ()) -> Experiment:
    """The run's configuration."""
    cell = job.cell
    names = [f"site{number}" for number in range(cell.sites)]
    privacy = [f"privacy.epsilon={cell.epsilon}"] if cell.private else ["privacy.mode=none"]
    return load_experiment(
        "pneumonia",
        [
            *COMMON,
            f"seed={job.seed}",
            f"partition.sites=[{','.join(names)}]",
            f"partition.alpha={cell.alpha}",
            f"federation.quorum={cell.sites}",
            f"training.learning_rate={job.rate}",
            *privacy,
            *ARMS[job.arm],
            *extra,
        ],
    )
