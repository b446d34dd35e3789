"""What the registry is told about a run, so that MLflow's own pages tell its story without FedMed at hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aggregator.registry import Metric, RunInfo
from aggregator.registry.model_folder import read_manifest
from aggregator.rounds.evaluation import EvaluationRecord, evaluated_at, read_evaluation, told_scores
from aggregator.rounds.store import RoundRecord, RoundStore
from aggregator.runs.folder import RUN_FILE
from fedmed.config import Experiment, to_dict


def open_run(run_dir: Path, experiment: Experiment) -> RunInfo:
    """What the store is told when the first round is committed, long before there is a version."""
    key = str(json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))["key"])
    tags = {"run": key, "experiment": experiment.name, "config_sha256": experiment.sha256}
    return RunInfo(
        name=experiment.registry.name,
        key="",
        run_name=key,
        params=dict(flatten(to_dict(experiment))),
        tags=tags,
    )


def run_info(run_dir: Path, experiment: Experiment, report: Mapping[str, Any], metrics: Sequence[Metric]) -> RunInfo:
    """Params (flattened configuration), lineage tags and a description, from a run's report; `metrics` as `curves` gives."""
    manifest = read_manifest(run_dir / "model")
    return RunInfo(
        name=experiment.registry.name,
        key=f"{manifest['key']}/{manifest['adapter']['sha256'][:12]}",
        run_name=manifest["key"],
        params=dict(flatten(to_dict(experiment))),
        metrics=metrics,
        tags=lineage_tags(report),
        description=describe(report),
    )


def curves(store: RoundStore) -> list[Metric]:
    """The points of every committed round, and of the federated evaluation."""
    points = [point for record in store.records() for point in round_points(record, store.committed_at(record.round))]
    if (found := read_evaluation(store.folder, store.last())) is not None:
        points += evaluation_points(found, evaluated_at(store.folder))
    return points


def round_points(record: RoundRecord, at: float) -> Iterator[Metric]:
    """What a round adds to the curves; round 0 has its zero-shot accuracy alone. `at`: seconds since 1970."""
    if record.scores is not None:
        yield Metric("test_accuracy", record.scores.accuracy, record.round, at)
    if record.round == 0:
        return
    values = {
        "replies": len(record.replies),
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "seconds": record.seconds,
        "reply_seconds": record.reply_seconds,
    }
    for name, value in values.items():
        yield Metric(name, float(value), record.round, at)
    for reply in record.replies:
        if math.isfinite(reply.epsilon) and reply.epsilon >= 0:  # below 0: no bound
            yield Metric(f"epsilon/{reply.site}", reply.epsilon, record.round, at)


def evaluation_points(record: EvaluationRecord, at: float) -> Iterator[Metric]:
    """What the federated evaluation adds: of each score that can be told, of all sites and of each. `at`: seconds since 1970."""
    for item in told_scores(record):
        for where, own in {"": item.all, **{f"/{site}": told for site, told in item.sites.items()}}.items():
            if own.value is not None and own.error is not None:
                yield Metric(f"held_out/{item.name}{where}", own.value, record.round, at)
                yield Metric(f"held_out_error/{item.name}{where}", own.error, record.round, at)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`{"a": {"b": 1}}` as ("a.b", "1"): the key paths of a configuration."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            text = ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
            yield f"{prefix}{name}", text or "(empty)"


def lineage_tags(report: Mapping[str, Any]) -> dict[str, str]:
    """Everything that leads back from a version to what it was made of; on the run and on the version."""
    privacy, data, sites = report["privacy"], report["data"], report["sites"]
    values = {
        "run": report["key"] or report["experiment"],
        "experiment": report["experiment"],
        "method": report["method"],
        "base_model": report["base_model"]["name"],
        "base_sha256": report["base_model"]["sha256"],
        "adapter_sha256": report["adapter_sha256"],
        "config_sha256": report["config_sha256"],
        "parent_version": "none: trained from the base model",
        "data_source": f"{data['source']}, {data['split']} split",
        "test_sha256": data["test_sha256"],
        "privacy": privacy["mode"],
        "max_epsilon": "unbounded" if privacy["max_epsilon"] is None else privacy["max_epsilon"],
        "delta": privacy["delta"],
        "noise_multiplier": privacy["noise_multiplier"],
        "sites": ", ".join(site["name"] for site in sites),
        "zero_shot_accuracy": report["zero_shot_accuracy"],
        "final_accuracy": report["final_accuracy"],
    }
    values |= {f"dataset/{site['name']}": site["dataset_fingerprint"] for site in sites}
    return {name: str(value) for name, value in values.items() if value is not None}


def describe(report: Mapping[str, Any]) -> str:
    """The run in Markdown, for the description fields of MLflow's pages."""
    privacy, rounds, sites = report["privacy"], report["rounds"], report["sites"]
    skipped = sum(item["skipped"] for item in rounds)
    lines = [f"> **WARNING: {privacy['warning']}**\n"] if privacy["warning"] else []
    lines += [
        f"{len(sites)} sites fine-tuned **{report['base_model']['name']}** together over {len(rounds)} rounds "
        f"({skipped} skipped) with `{report['method']}`; test accuracy {_percent(report['zero_shot_accuracy'])} "
        f"before, **{_percent(report['final_accuracy'])}** after (always the most frequent answer: "
        f"{_percent(report['majority_accuracy'])}).",
        "",
        f"Privacy: {_privacy_sentence(privacy)}",
        "",
        "| site | patients | rounds joined | epsilon spent |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {site['name']} | {site['num_patients'] or 'not told'} | {site['rounds_joined']} | {_shown(site['epsilon'])} |"
            for site in sites
        ),
        "",
        "Artifacts: `model/merged` (transformers checkpoint), `model/adapter` (PEFT), `model/manifest.json` "
        "(lineage, SHA-256 of every file), `report.html`.",
    ]
    return "\n".join(lines)


def _privacy_sentence(privacy: Mapping[str, Any]) -> str:
    if privacy["mode"] == "none":
        return "**none at all**."
    return (
        f"patient-level ({_shown(privacy['max_epsilon'])}, {privacy['delta']:g})-differential privacy at the site that "
        f"spent most, planned {privacy['epsilon_planned']:g}; noise multiplier {privacy['noise_multiplier']:g}."
    )


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _shown(value: object) -> str:
    return "unbounded" if value is None else f"{value}"
