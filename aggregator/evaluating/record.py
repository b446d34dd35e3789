"""An evaluation at the model's version: metrics and files of its MLflow run, and one tag that a list of versions shows.

    evaluations/vqa_rad-test-official-0shot/closed_accuracy        the metric of that name
    evaluations/vqa_rad-test-official-0shot/report.html            the file
    evaluations/vqa_rad-test-official-0shot-first50/...            with --limit 50: takes no whole evaluation's place

The same evaluation again replaces its files and adds no point: its entry is named by the data, the way it was asked and the scores.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aggregator.registry import Metric, Registry, Version
from fedmed.metrics.answers import MAIN


def log_results(registry: Registry, version: Version, results: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Raises RegistryError when the store does not take it; the files are on disk then all the same."""
    place = f"evaluations/{folder_name(results)}"
    numbers = {name: row["estimate"] for name, row in results["scores"].items() if row["estimate"] is not None}
    told = [results["data"], results["generation"], results["scores"]]
    entry = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    registry.attach(version, files, place)
    registry.measure(
        version, f"{place}/{entry}", [Metric(f"{place}/{name}", value, 0) for name, value in numbers.items()]
    )
    registry.tag(version, {place: summary(results)})


def folder_name(results: Mapping[str, Any]) -> str:
    """Names an evaluation by its data set, split, rule, examples in the prompt and limit; in letters that MLflow takes."""
    data = results["data"]
    words = [data["name"], data["split"], data["split_rule"], asked_as(results["generation"]["shots"], data["first"])]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(words))


def asked_as(shots: int, first: int) -> str:
    """The end of an evaluation's name: examples in the prompt, and how many questions where not all were asked."""
    return f"{shots}shot" + (f"-first{first}" if first else "")


def summary(results: Mapping[str, Any]) -> str:
    """The scores that the model is judged by, with their intervals, in one line."""
    scores = results["scores"]
    parts = [f"{name} {_shown(scores[name])}" for name in MAIN if name in scores]
    return f"{'; '.join(parts)}; {results['data']['items']} items"


def _shown(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return "not defined" if row["estimate"] is None else f"{row['estimate']:.4f}"
    return f"{row['estimate']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
