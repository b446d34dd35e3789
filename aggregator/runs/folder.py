"""The files that say what a run is, in its folder runs/NAME; how it went is in events.jsonl and rounds/.

experiment.json     the resolved configuration
run.json            the run's key, where its data came from, how long it took
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedmed.config import Experiment, parse_experiment
from fedmed.errors import ConfigError, FederationError

EXPERIMENT_FILE, RUN_FILE, EVENTS_FILE = "experiment.json", "run.json", "events.jsonl"
HELD_OUT = "held_out"  # in a local site's folder: the manifest of patients who are not trained on
PUBLIC, VALIDATION = "public", "validation"  # manifests of public splits


def read_experiment(folder: Path) -> Experiment:
    """The configuration that a run was started with.

    Raises:
        FederationError: `folder` is not a run's, or its files are damaged.
        ConfigError: it is not one of this release.
    """
    try:
        return parse_experiment(_read(folder / EXPERIMENT_FILE))
    except ConfigError as error:
        problems = [f"{folder / EXPERIMENT_FILE}: {problem}" for problem in error.problems]
        raise ConfigError(
            problems, "not written by this release of FedMed: go on with the one that began the run, or run it anew"
        ) from None


def read_run(folder: Path) -> tuple[Experiment, dict[str, Any]]:
    """A run's resolved configuration and run.json. Raises as `read_experiment`."""
    return read_experiment(folder), _read(folder / RUN_FILE)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FederationError(
            f"{path.parent} is not a run folder: {path} is missing",
            "name one that `fedmed run` made, such as runs/demo; one that was cut off before its data was written is run anew",
        ) from None
    except ValueError as error:
        raise FederationError(
            f"{path} is damaged: {error}", "mend it from a copy, or run the experiment anew"
        ) from None
