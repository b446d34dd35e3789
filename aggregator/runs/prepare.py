"""What a local federation needs on disk before a process starts: the run's folder, its data, and the site folders.

    runs/NAME/experiment.json   the resolved configuration
    runs/NAME/run.json          the run's key, data notes, majority answer
    runs/NAME/public/           manifest of the public test set; the aggregator scores every round on it
    runs/NAME/validation/       of the public validation split, where a stage is judged by it (see aggregator/rounds/stages.py)
    runs/NAME/sites/SITE/data/  manifest of a hospital; nothing outside the site's daemon reads it
    runs/NAME/sites/SITE/held_out/  of its patients who are not trained on, where partition.held_out says so

An older run of the same name is moved aside to NAME.1, NAME.2, ..., never overwritten.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aggregator.rounds.stages import Place
from aggregator.runs.folder import EXPERIMENT_FILE, HELD_OUT, PUBLIC, VALIDATION
from aggregator.runs.locks import COMMAND_LOCK, SERVER_LOCK, hold
from fedmed.config import Experiment, to_dict
from fedmed.data.difficulty import difficulty
from fedmed.data.manifest import Manifest, write_manifest
from fedmed.data.partition import hold_out, partition
from fedmed.data.schema import Example
from fedmed.data.shots import with_public_shots
from fedmed.data.sources import Source, load_source
from fedmed.errors import DataError
from fedmed.files import write_json


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The data of an experiment on disk."""

    sites: Mapping[str, Manifest]
    public: Manifest
    source: str
    notes: tuple[str, ...]


def new_run_folder(experiment: Experiment, runs_dir: Path) -> Path:
    """`runs_dir/NAME`, fresh, with experiment.json in it.

    Raises:
        FederationError: a process works on the folder of that name, so that it cannot be moved aside.
    """
    folder = runs_dir / experiment.name
    if folder.exists():
        for lock, who in ((COMMAND_LOCK, "another command"), (SERVER_LOCK, "a server app")):
            with hold(folder / lock, who):
                pass
        folder.rename(_first_free(folder))
    folder.mkdir(parents=True, mode=0o755)
    write_json(folder / EXPERIMENT_FILE, to_dict(experiment))
    return folder


def new_run_key(experiment: Experiment) -> str:
    """A name for this run that no other run has, for ledgers and the registry."""
    return f"{experiment.name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"


def write_data(experiment: Experiment, folder: Path, *, with_sites: bool = True) -> PreparedData:
    """Write the public test manifest and, unless the sites are elsewhere, one manifest a hospital.

    Raises:
        DataError: the source is not there, cannot be split as asked, has nothing to judge a stage by that is judged, or no
            record that a stage trains on.
    """
    source = _with_shots(load_source(experiment.data, experiment.seed), experiment.data.shots, experiment.seed)
    test, val = (_scored(experiment, source.name, part) for part in (source.test, source.val))
    public = write_manifest(folder / PUBLIC, test)
    if any(stage.curriculum.is_judged for stage in experiment.plan.values()):
        _require_judged(experiment, source.name, val)
        write_manifest(folder / VALIDATION, val)
    sites: dict[str, Manifest] = {}
    if with_sites:
        _require_records(experiment, source)
        rule = experiment.partition
        parts = partition(source.train, rule.sites, rule.scheme, rule.field, rule.alpha, experiment.seed)
        for site, part in parts.items():
            train, held_out = hold_out(part, rule.held_out, experiment.seed)
            sites[site] = write_manifest(folder / "sites" / site / "data", train)
            if held_out:
                write_manifest(folder / "sites" / site / HELD_OUT, held_out)
    return PreparedData(sites, public, source.name, source.notes)


def _with_shots(source: Source, shots: int, seed: int) -> Source:
    """Every question with so many public examples before it: of half the validation split, which itself is no longer asked."""
    if not shots:
        return source
    half = len(source.val) // 2
    train, val, test = (
        tuple(with_public_shots(part, source.val[:half], shots, seed))
        for part in (source.train, source.val[half:], source.test)
    )
    notes = (*source.notes, f"{shots} public examples stand before each question")
    return replace(source, train=train, val=val, test=test, notes=notes)


def _scored(experiment: Experiment, source: str, examples: Sequence[Example]) -> list[Example]:
    """Of public examples those that the experiment scores."""
    tasks = experiment.evaluation.tasks
    kept = [example for example in examples if not tasks or example.task in tasks]
    if examples and not kept:
        raise DataError(f"evaluation.tasks={list(tasks)}: {source} has no public example of them")
    return kept


def _require_judged(experiment: Experiment, source: str, val: Sequence[Example]) -> None:
    """A metric without an item would be 0 in every round: patience would end the stage where it began."""
    kinds = {example.answer_type for example in val}
    for name, stage in experiment.plan.items():
        if not stage.curriculum.is_judged:
            continue
        metric = stage.curriculum.metric
        if not val:
            raise DataError(
                f"{source} has no validation split, and {name or 'the run'} is judged by one",
                "set curriculum.patience=0 and curriculum.min_gain=-1, or take another data.split",
            )
        if (needed := metric.partition("_")[0]) in ("closed", "open") and needed not in kinds:
            raise DataError(
                f"{name or 'the run'}: curriculum.metric={metric}: {source} has no {needed} question to validate on",
                "take curriculum.metric=accuracy, or other evaluation.tasks",
            )


def _require_records(experiment: Experiment, source: Source) -> None:
    """A stage without any record would spend the patients' privacy on noise alone."""
    for name, stage in experiment.plan.items():
        first = Place(number=1, within=1, name=name, stage=stage, begin=0).selection
        grades = {
            difficulty(example)
            for example in source.train
            if (not first.tasks or example.task in first.tasks)
            and (not first.sources or example.source in first.sources)
        }
        asked = f"{name or 'the run'}: curriculum.tasks={list(first.tasks)}, sources={list(first.sources)}"
        if not grades:
            raise DataError(f"{asked}: {source.name} has no record of them to train on")
        if first.grading == "text" and min(grades) > first.max_difficulty:
            raise DataError(
                f"{asked}: the easiest of these records has difficulty {min(grades)}, and the first round takes none above "
                f"curriculum.start_difficulty={first.max_difficulty}"
            )


def _first_free(folder: Path) -> Path:
    number = 1
    while (target := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return target
