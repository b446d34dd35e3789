"""From a run's committed rounds to a registered version: merge, hash, register, gate, alias.

    build_model(Path("runs/demo"), experiment)                 # runs/demo/model: adapter/, merged/, manifest.json
    version = publish(Path("runs/demo"), registry)             # challenger, and champion when it passes the gate

The run's folder is the outbox: everything that a version holds is in it, so `publish` can be called again after a
store was down, any number of times, and makes one version.

| gate                                               | outcome                                           |
| -------------------------------------------------- | ------------------------------------------------- |
| accuracy below zero-shot                           | fails                                             |
| no champion yet                                    | passes                                            |
| champion measured on the same test set             | passes when the accuracy is not below its         |
| champion measured on another test set              | fails: a person compares and promotes             |
| accuracy unknown                                   | fails                                             |
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.registry import CHALLENGER, CHAMPION, Registry, Version, promote
from aggregator.registry.base import holder
from aggregator.registry.model_folder import verify_model, write_manifest
from aggregator.registry.story import curves, run_info
from aggregator.reports.report import build_report, registry_entry, write_html, write_json_report
from aggregator.rounds.store import RoundStore
from aggregator.runs.folder import read_experiment
from fedmed.config import Experiment
from fedmed.errors import FederationError, ModelError, RegistryError

if TYPE_CHECKING:
    import torch

    from fedmed.models.base import BaseModel

METRIC = "final_accuracy"
_GATE_TAG = "gate"


@dataclass(frozen=True, slots=True)
class Gate:
    """The decision on a promotion: `metric` of the champion (`before`, None when there is none) and of the version."""

    passed: bool
    reason: str
    metric: str
    before: float | None
    after: float | None


def build_model(run_dir: Path, experiment: Experiment, base: BaseModel | None = None) -> Path:
    """Merge the last committed adapter into the base model; returns run_dir/model, whole and hashed.

    A folder that is there already, unharmed and of the same adapter, is kept.

    Args:
        base: the base model, when it is loaded already.

    Raises:
        FederationError: no committed round.
        ModelError: the base model or the adapter does not fit, or the base is not the one that was trained.
    """
    store = RoundStore(run_dir / "rounds")
    last = store.last()
    if last is None:
        raise FederationError(f"{run_dir} holds no committed round, so there is no adapter to merge")
    target = run_dir / "model"
    if _is_built(target, last.adapter_sha256):
        return target
    for torn in run_dir.glob(".model-*"):  # of a builder that was killed
        shutil.rmtree(torn)
    part = Path(tempfile.mkdtemp(prefix=".model-", dir=run_dir))
    try:
        if target.exists():
            shutil.rmtree(target)
        lineage = _lineage(run_dir, experiment)
        processor = _write_weights(part, experiment, lineage["base_model"]["sha256"], store.state(last.round), base)
        write_manifest(part, lineage | processor)
        part.chmod(0o755)
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def publish(run_dir: Path, registry: Registry) -> Version:
    """Register run_dir/model and move the aliases: `challenger` to the newest, `champion` when the gate lets it pass.

    Raises:
        RegistryError: the store cannot be reached, or the model is not what its manifest says.
    """
    experiment = read_experiment(run_dir)
    report = build_report(run_dir, experiment)
    version = registry.publish(
        run_dir / "model", run_info(run_dir, experiment, report, curves(RoundStore(run_dir / "rounds")))
    )
    with registry.exclusive(version.name):  # the gate compares with the champion that it then replaces
        version = registry.get(version.reference)
        if _GATE_TAG not in version.tags:
            version = _decide(registry, version, report, experiment.registry.promote)
    registry.attach(version, _refresh_report(run_dir, report, version))
    return version


def _refresh_report(run_dir: Path, report: dict[str, Any], version: Version) -> list[Path]:
    """Report files that name the version; a finished run's own report knows more than `report` and is kept."""
    paths = [run_dir / "report.json", run_dir / "report.html"]
    if paths[0].is_file():
        report = json.loads(paths[0].read_text())
    report["registry"] = registry_entry(version)
    write_json_report(report, paths[0])
    write_html(report, paths[1])
    return paths


def gate(report: Mapping[str, Any], champion: Version | None) -> Gate:
    """Whether a run's version may become champion; see the table above. Pure.

    Args:
        report: of the run, as `build_report` makes it.
        champion: the present one, whose tags tell what it was measured on.
    """
    after, zero_shot = report["final_accuracy"], report["zero_shot_accuracy"]
    before = _number(champion.tags.get(METRIC)) if champion else None
    if after is None:
        return Gate(False, "the final accuracy was not measured", METRIC, before, None)
    if zero_shot is not None and after < zero_shot:
        return Gate(False, f"accuracy {after:.4f} is below zero-shot {zero_shot:.4f}", METRIC, before, after)
    if champion is None:
        return Gate(True, f"accuracy {after:.4f}; there was no champion", METRIC, None, after)
    name = champion.reference
    if before is None or champion.tags.get("test_sha256") != report["data"]["test_sha256"]:
        reason = f"{name} was measured on another test set: compare them, then fedmed registry promote"
        return Gate(False, reason, METRIC, before, after)
    if after < before:
        return Gate(False, f"accuracy {after:.4f} is below {name}'s {before:.4f}", METRIC, before, after)
    return Gate(True, f"accuracy {after:.4f} is not below {name}'s {before:.4f}", METRIC, before, after)


def _decide(registry: Registry, version: Version, report: Mapping[str, Any], may_promote: bool) -> Version:
    """Run the gate once for a new version; its decision is the version's tag `gate`, written last."""
    if not _had(version, CHALLENGER):
        version = promote(registry, version.reference, CHALLENGER, "newest version")
    champion = holder(registry.versions(version.name), CHAMPION)
    if champion is not None and champion.version == version.version:
        champion = None  # cut off between alias and tag: the decision was made
    decision = gate(report, champion)
    if decision.passed and may_promote and not _had(version, CHAMPION):
        version = promote(registry, version.reference, CHAMPION, decision.reason, gate=asdict(decision))
    return registry.tag(version, {_GATE_TAG: f"{'passed' if decision.passed else 'failed'}: {decision.reason}"})


def _had(version: Version, alias: str) -> bool:
    """Whether the version was ever given the alias: cut off before the gate's tag, it is not given twice."""
    return alias in version.aliases or any(tag.startswith(f"{alias}.") for tag in version.tags)


def _is_built(folder: Path, adapter_sha256: str) -> bool:
    try:
        return bool(verify_model(folder)["adapter"]["sha256"] == adapter_sha256) if folder.exists() else False
    except (RegistryError, KeyError):
        return False


def _lineage(run_dir: Path, experiment: Experiment) -> dict[str, Any]:
    """What manifest.json says beside the files' hashes."""
    report = build_report(run_dir, experiment)
    lora = experiment.lora
    same = ("experiment", "key", "config_sha256", "method", "base_model", "data", "privacy", "sites", "notes")
    return {
        **{name: report[name] for name in same},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "adapter": {
            "sha256": report["adapter_sha256"],
            "rank": lora.rank,
            "alpha": lora.alpha,
            "parts": list(lora.parts),
            "targets": list(lora.targets),
            "modules_to_save": list(lora.modules_to_save),
            "virtual_tokens": lora.virtual_tokens,
            "virtual_kind": lora.virtual_kind,
        },
        "num_rounds": len(report["rounds"]),
        "metrics": {name: report[name] for name in ("zero_shot_accuracy", METRIC, "majority_accuracy")},
    }


def _write_weights(
    folder: Path, experiment: Experiment, base_sha256: str, state: dict[str, torch.Tensor], base: BaseModel | None
) -> dict[str, str]:
    """merged/ and adapter/ below `folder`; returns what the manifest says about the processor."""
    from fedmed.messages import sha256_hex
    from fedmed.models.base import load_base
    from fedmed.models.merge import merge_adapter, save_merged, save_peft_adapter
    from fedmed.models.prompts import adapted_processor

    base = base or load_base(experiment.base_model.name, expected_sha256=base_sha256)
    if base.sha256 != base_sha256:
        raise ModelError(f"base model {base.name!r} has sha256 {base.sha256[:12]}, expected {base_sha256[:12]}")
    spec = experiment.lora.spec
    processor: Any = adapted_processor(base, spec)
    save_merged(merge_adapter(base, spec, state), processor, folder / "merged")
    save_peft_adapter(folder / "adapter", spec, state, base.name)
    return {"chat_template_sha256": sha256_hex(str(processor.chat_template).encode())}


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
