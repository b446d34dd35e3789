"""A run's folder in, its report out: one JSON object (docs/report.md says what each key means) and one HTML page.

    report = build_report(Path("runs/demo"), experiment, version=version, served=served, wall_s=141.0)
    write_json_report(report, Path("runs/demo/report.json"))
    write_html(report, Path("runs/demo/report.html"))

Only committed rounds count, so a report can be built at any time, also of a run that was cut off.

| case                                     | in the report                                                    |
| ---------------------------------------- | ---------------------------------------------------------------- |
| a round below the quorum                 | `skipped` true; accuracy is that of the model which stayed       |
| a site left out                          | its name and reason in that round's `left_out`                   |
| `privacy: none`, or no finite epsilon    | `epsilon` null and a `warning` that says what it means           |
| the sites were not asked for scores      | `federated_evaluation` null                                      |
| registry down, or nothing served         | `registry`, `served` null                                        |
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.methods import get_method
from aggregator.registry import CHAMPION, Version
from aggregator.registry.model_folder import MANIFEST, read_manifest
from aggregator.reports.federated import federated_section
from aggregator.rounds.evaluation import read_evaluation
from aggregator.rounds.store import RoundRecord, RoundStore, SiteReport
from aggregator.runs.folder import EVENTS_FILE, PUBLIC, RUN_FILE
from aggregator.watching.events import read_events
from fedmed.config import Experiment, Privacy
from fedmed.errors import FederationError
from fedmed.files import READABLE, write_atomic, write_json

if TYPE_CHECKING:
    from fedmed.metrics.scores import Scores

SCHEMA_VERSION = 2
NO_PRIVACY = (
    "This run had NO differential privacy. The adapter may reveal single patients' images and texts to whoever "
    "holds it. Use it with public data only."
)
INSECURE = (
    "This run's noise was drawn from privacy.insecure_noise_seed: whoever knows the seed can subtract it, so there was NO "
    "privacy. Such a run is for tests."
)
UNBOUNDED = "At least one site reports no finite epsilon: its patients had no privacy guarantee in this run."


def build_report(
    run_dir: Path,
    experiment: Experiment,
    *,
    version: Version | None = None,
    served: Mapping[str, Any] | None = None,
    wall_s: float | None = None,
    transport: str = "grpc",
) -> dict[str, Any]:
    """The report of a run, as plain JSON types.

    Args:
        run_dir: with rounds/, events.jsonl, and model/ when it was built.
        experiment: the run's configuration.
        version: the registered version, when there is one.
        served: {model, question, answer, expected, latency_s} of the question asked, when one was.
        wall_s: wall time of the whole command in seconds.

    Raises:
        FederationError: not even the initial adapter was committed.
    """
    records = RoundStore(run_dir / "rounds").records()
    if not records:
        raise FederationError(f"{run_dir} holds no committed round, expected at least the initial adapter")
    first, last, trained = records[0], records[-1], records[1:]
    facts = lineage_facts(run_dir, experiment)
    joined = {event["site"]: event for event in read_events(run_dir / EVENTS_FILE) if event["kind"] == "joined"}
    sites = [_site(name, trained, joined) for name in _site_names(experiment, trained, joined)]
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment.name,
        "key": facts["key"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_sha256": experiment.sha256,
        "method": experiment.federation.method,
        "transport": transport,
        "base_model": facts["base_model"],
        "data": facts["data"],
        "privacy": _privacy(experiment, facts["noise_multiplier"], sites),
        "sites": sites,
        "rounds": [_round(record) for record in trained],
        "zero_shot_accuracy": _accuracy(first.scores),
        "final_accuracy": _accuracy(last.scores),
        "majority_accuracy": _rounded(last.scores.majority_accuracy) if last.scores else None,
        "federated_evaluation": federated_section(read_evaluation(run_dir / "rounds", last)),
        "scores": {"before": _scores(first.scores), "after": _scores(last.scores)},
        "adapter_sha256": last.adapter_sha256,
        "registry": registry_entry(version) if version else None,
        "served": dict(served) if served else None,
        "wall_s": _rounded(wall_s, 1),
        "notes": facts["notes"],
    }


def lineage_facts(run_dir: Path, experiment: Experiment) -> dict[str, Any]:
    """What is known about a run beside its rounds: from model/manifest.json, or worked out when there is none yet.

    Keys: key, base_model {name, sha256}, data {source, split, test_examples, test_sha256}, noise_multiplier, notes.
    """
    if (run_dir / "model" / MANIFEST).is_file():
        manifest = read_manifest(run_dir / "model")
        facts = {name: manifest[name] for name in ("key", "base_model", "data", "notes")}
        return facts | {"noise_multiplier": manifest["privacy"]["noise_multiplier"]}
    from aggregator.rounds.tasks import plan_privacy
    from fedmed.data.manifest import load_manifest
    from fedmed.models.checkpoint import checkpoint_path, checkpoint_sha256

    run = _read_run(run_dir)
    checkpoint = checkpoint_path(experiment.base_model.name)
    sha256 = checkpoint_sha256(checkpoint) if checkpoint else experiment.base_model.sha256
    public = load_manifest(run_dir / PUBLIC)
    return {
        "key": run.get("key") or f"{experiment.name}-{experiment.sha256[:12]}",
        "base_model": {"name": experiment.base_model.name, "sha256": sha256},
        "data": {
            "source": run.get("data_source", experiment.data.source),
            "split": experiment.data.split,
            "test_examples": len(public.examples),
            "test_sha256": public.sha256,
        },
        "noise_multiplier": _rounded(plan_privacy(experiment).noise_multiplier, 6),
        "notes": [*run.get("notes", []), *get_method(experiment.federation.method).notes],
    }


def write_json_report(report: Mapping[str, Any], path: Path) -> None:
    """report.json, replaced in one step."""
    write_json(path, report)


def write_html(report: Mapping[str, Any], path: Path) -> None:
    """report.html, self-contained, replaced in one step."""
    from aggregator.reports.page import render_page

    write_atomic(path, render_page(report).encode(), READABLE)


def _read_run(run_dir: Path) -> dict[str, Any]:
    path = run_dir / RUN_FILE
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _site_names(experiment: Experiment, trained: Sequence[RoundRecord], joined: Mapping[str, Any]) -> list[str]:
    """Every site that was expected, joined or replied, in a steady order."""
    names = [*joined, *(reply.site for record in trained for reply in record.replies)]
    # With sites started by hand, the configuration's names are only examples.
    expected = [] if names else list(experiment.partition.sites)
    return sorted(dict.fromkeys([*expected, *names]))


def _site(name: str, trained: Sequence[RoundRecord], joined: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    replies = [reply for record in trained for reply in record.replies if reply.site == name]
    last: SiteReport | None = replies[-1] if replies else None
    patients = last.num_patients if last else joined.get(name, {}).get("num_patients")
    return {
        "name": name,
        "num_patients": patients or None,
        "epsilon": _epsilon(last.epsilon) if last else 0.0,
        "delta": last.delta if last else None,
        "epsilon_total": _epsilon(last.epsilon_total) if last else None,
        "rounds_joined": len(replies),
        "dataset_fingerprint": last.dataset_fingerprint if last else None,
    }


def _round(record: RoundRecord) -> dict[str, Any]:
    return {
        "round": record.round,
        "replies": len(record.replies),
        "skipped": record.skipped,
        "stage": record.stage,
        "verdict": record.verdict,
        "left_out": dict(record.left_out),
        "test_accuracy": _accuracy(record.scores),
        "closed_accuracy": _rounded(record.scores.closed_accuracy) if record.scores else None,
        "open_recall": _rounded(record.scores.open_recall) if record.scores else None,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "seconds": _rounded(record.seconds, 2),
        "reply_seconds": _rounded(record.reply_seconds, 2),
        "epsilon": {reply.site: _epsilon(reply.epsilon) for reply in record.replies},
        "adapter_sha256": record.adapter_sha256,
        "local_accuracy": _rounded(record.local_accuracy),
        "local_error": _rounded(record.local_error),
    }


def _privacy(experiment: Experiment, noise_multiplier: float, sites: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    privacy = experiment.privacy
    is_none = privacy.mode == "none"
    spent = [site["epsilon"] for site in sites]
    unbounded = any(value is None for value in spent)
    return {
        "mode": privacy.mode,
        "unit": "patient",
        "epsilon_planned": None if is_none else privacy.epsilon,
        "max_epsilon": None if is_none or unbounded else max(spent, default=0.0),
        "delta": None if is_none else privacy.delta,
        "noise_multiplier": noise_multiplier,
        "sample_rate": privacy.sample_rate,
        "max_grad_norm": privacy.max_grad_norm,
        "metrics_noise_multiplier": privacy.metrics_noise_multiplier,
        "warning": _warning(privacy, unbounded),
    }


def _warning(privacy: Privacy, unbounded: bool) -> str | None:
    if privacy.mode == "none":
        return NO_PRIVACY
    if privacy.insecure_noise_seed >= 0:
        return INSECURE
    return UNBOUNDED if unbounded else None


def registry_entry(version: Version) -> dict[str, Any]:
    """The report's `registry`."""
    alias = CHAMPION if CHAMPION in version.aliases else next(iter(version.aliases), None)
    return {"name": version.name, "version": version.version, "alias": alias, "run_id": version.run_id}


def _scores(scores: Scores | None) -> dict[str, Any] | None:
    return scores.to_dict() if scores else None


def _accuracy(scores: Scores | None) -> float | None:
    return _rounded(scores.accuracy) if scores else None


def _epsilon(value: float) -> float | None:
    """An epsilon for a person: 4 digits after the point, rounded up; None when there is no bound."""
    return None if value < 0 or not math.isfinite(value) else math.ceil(value * 1e4 - 1e-6) / 1e4


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)
