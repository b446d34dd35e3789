"""From committed rounds to a version: the model folder, the gate as a table, and a store that was down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from aggregator.registry import MemoryRegistry, MlflowRegistry, Version, read_history
from aggregator.registry.model_folder import verify_model
from aggregator.registry.publish import build_model, gate, publish
from aggregator.registry.story import flatten
from aggregator.runs.folder import read_experiment
from fedmed.errors import ConfigError, FederationError, RegistryError
from fedmed.models.base import load_base

FinishedRun = Callable[..., tuple[Path, Any]]


@pytest.fixture
def built(tmp_path: Path, finished_run: FinishedRun) -> tuple[Path, Any]:
    folder, experiment = finished_run(tmp_path / "demo")
    build_model(folder, experiment)
    return folder, experiment


def test_the_manifest_leads_back_to_everything(built: tuple[Path, Any]) -> None:
    folder, experiment = built
    manifest = verify_model(folder / "model")
    assert manifest["schema_version"] == 1 and manifest["config_sha256"] == experiment.sha256
    assert manifest["base_model"] == {"name": experiment.base_model.name, "sha256": load_hash(experiment)}
    assert manifest["metrics"]["final_accuracy"] == 0.8 and manifest["num_rounds"] == 3
    assert {site["name"] for site in manifest["sites"]} == set(experiment.partition.sites)
    assert len(manifest["chat_template_sha256"]) == 64 and manifest["privacy"]["mode"] == "dp"
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < set(manifest["files"])
    assert {"merged/model.safetensors", "merged/config.json"} < set(manifest["files"])


def load_hash(experiment: Any) -> str:
    return load_base(experiment.base_model.name).sha256


def test_the_adapter_loads_with_peft_and_equals_the_merged_model(built: tuple[Path, Any]) -> None:
    folder, experiment = built
    adapted: Any = PeftModel.from_pretrained(load_base(experiment.base_model.name).model, str(folder / "model/adapter"))
    merged: Any = load_base(str(folder / "model" / "merged")).model
    plain: Any = load_base(experiment.base_model.name).model
    tokens = torch.arange(6, 20).unsqueeze(0)
    with torch.inference_mode():
        expected, found, before = (model(input_ids=tokens).logits for model in (adapted, merged, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2)


def test_building_again_keeps_a_whole_folder_and_replaces_a_broken_one(built: tuple[Path, Any]) -> None:
    folder, experiment = built
    before = (folder / "model" / "manifest.json").stat().st_mtime_ns
    build_model(folder, experiment)
    assert (folder / "model" / "manifest.json").stat().st_mtime_ns == before
    (folder / "model" / "merged" / "config.json").write_text("{}")
    build_model(folder, experiment)
    verify_model(folder / "model")
    assert not list(folder.glob(".model-*"))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="is not a run folder"):
        read_experiment(tmp_path)


def test_a_run_that_cannot_be_read_names_its_file(tmp_path: Path) -> None:
    file = tmp_path / "experiment.json"
    file.write_text('{"name": "half')
    with pytest.raises(FederationError, match=f"{file} is damaged"):
        read_experiment(tmp_path)
    file.write_text(json.dumps({"name": "old", "rounds": 3}))
    with pytest.raises(ConfigError, match=f"{file}: rounds: unknown key") as error:
        read_experiment(tmp_path)
    assert "the one that began the run" in error.value.hint


def test_publish_tells_the_whole_story(built: tuple[Path, Any]) -> None:
    registry = MemoryRegistry()
    version = publish(built[0], registry)
    run = registry.runs[version.run_id]
    assert version.reference == "fedmed:1" and set(version.aliases) == {"challenger", "champion"}
    assert version.tags["gate"].startswith("passed") and version.tags["max_epsilon"] == "1.5"
    assert run.params["privacy.epsilon"] == "4.0" and run.params["partition.sites"] == "north, harbour, valley"
    curves = {(metric.name, metric.step): metric.value for metric in run.metrics}
    assert curves[("test_accuracy", 0)] == 0.5 and curves[("test_accuracy", 3)] == 0.8
    assert curves[("epsilon/north", 3)] == 1.5 and curves[("replies", 2)] == 1
    assert "80.0 %" in run.description and "| harbour | 600 |" in run.description
    assert set(registry.files[version.run_id]) == {"report.json", "report.html"}
    assert json.loads((built[0] / "report.json").read_text())["registry"]["version"] == 1
    champion = read_history(registry.versions("fedmed"), "champion")[0]
    assert champion.gate["after"] == 0.8 and champion.gate["before"] is None


def test_no_privacy_is_in_the_description(tmp_path: Path, finished_run: FinishedRun) -> None:
    folder, experiment = finished_run(tmp_path / "open", "privacy.mode=none")
    build_model(folder, experiment)
    registry = MemoryRegistry()
    version = publish(folder, registry)
    assert "NO differential privacy" in version.description and version.tags["max_epsilon"] == "unbounded"
    assert not [metric for metric in registry.runs[version.run_id].metrics if metric.name.startswith("epsilon")]


def test_a_store_that_was_down_gets_the_version_later_and_once(built: tuple[Path, Any]) -> None:
    registry = MemoryRegistry()
    registry.down = True
    with pytest.raises(RegistryError):
        publish(built[0], registry)
    registry.down = False
    assert publish(built[0], registry).version == publish(built[0], registry).version == 1
    assert len(registry.versions("fedmed")) == 1
    assert len(read_history(registry.versions("fedmed"), "champion")) == 1


def test_a_replay_does_not_take_the_champion_back(tmp_path: Path, finished_run: FinishedRun) -> None:
    registry = MemoryRegistry()
    runs = []
    for seed in (1, 2):
        folder, experiment = finished_run(tmp_path / f"run{seed}", seed=seed)
        build_model(folder, experiment)
        runs.append(folder)
        publish(folder, registry)
    assert registry.get("fedmed@champion").version == 2
    assert publish(runs[0], registry).version == 1
    assert registry.get("fedmed@champion").version == 2 and registry.get("fedmed@challenger").version == 2


def test_a_worse_version_stays_challenger(tmp_path: Path, finished_run: FinishedRun) -> None:
    registry = MemoryRegistry()
    for seed, last in ((1, 0.9), (2, 0.6)):
        folder, experiment = finished_run(tmp_path / f"run{seed}", seed=seed, accuracies=(0.5, last))
        build_model(folder, experiment)
        publish(folder, registry)
    assert registry.get("fedmed@champion").version == 1
    challenger = registry.get("fedmed@challenger")
    assert challenger.version == 2 and challenger.tags["gate"].startswith("failed: accuracy 0.6000 is below fedmed:1")


def test_promotion_can_be_switched_off(tmp_path: Path, finished_run: FinishedRun) -> None:
    folder, experiment = finished_run(tmp_path / "demo", "registry.promote=false")
    build_model(folder, experiment)
    version = publish(folder, MemoryRegistry())
    assert version.aliases == ("challenger",) and version.tags["gate"].startswith("passed")


def test_a_changed_model_folder_is_not_published(built: tuple[Path, Any]) -> None:
    (built[0] / "model" / "merged" / "config.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"merged/config\.json"):
        publish(built[0], MemoryRegistry())


def test_mlflow_takes_a_whole_run(tmp_path: Path, finished_run: FinishedRun, mlflow_registry: MlflowRegistry) -> None:
    folder, experiment = finished_run(tmp_path / "demo", "registry.name=whole-run")
    build_model(folder, experiment)
    version = publish(folder, mlflow_registry)
    fetched = mlflow_registry.fetch("whole-run@champion", tmp_path / "fetched")
    assert verify_model(fetched)["adapter"] == verify_model(folder / "model")["adapter"]
    assert publish(folder, mlflow_registry) == version


def champion(accuracy: str | None, test_set: str = "t") -> Version:
    tags = {"test_sha256": test_set} | ({} if accuracy is None else {"final_accuracy": accuracy})
    return Version("fedmed", 4, "r", ("champion",), tags, "", "")


@pytest.mark.parametrize(
    ("zero_shot", "final", "holder", "passes", "reason"),
    [
        (0.5, 0.8, None, True, "no champion"),
        (0.5, 0.5, None, True, "no champion"),
        (0.5, 0.4, None, False, "below zero-shot"),
        (None, 0.4, None, True, "no champion"),
        (0.5, None, None, False, "not measured"),
        (0.5, 0.8, champion("0.8"), True, "not below fedmed:4"),
        (0.5, 0.8, champion("0.81"), False, "below fedmed:4"),
        (0.5, 0.8, champion("0.1", "other"), False, "another test set"),
        (0.5, 0.8, champion(None), False, "another test set"),
        (0.5, 0.8, champion("broken"), False, "another test set"),
    ],
)
def test_gate(zero_shot: float | None, final: float | None, holder: Version | None, passes: bool, reason: str) -> None:
    report = {"zero_shot_accuracy": zero_shot, "final_accuracy": final, "data": {"test_sha256": "t"}}
    decision = gate(report, holder)
    assert decision.passed is passes and reason in decision.reason


def test_flatten_gives_key_paths() -> None:
    tree = {"a": {"b": 1, "c": ["x", "y"]}, "d": ""}
    assert dict(flatten(tree)) == {"a.b": "1", "a.c": "x, y", "d": "(empty)"}
