"""The registry's contract, kept by MemoryRegistry and MlflowRegistry alike, and what is special to each."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregator.registry import (
    MemoryRegistry,
    Metric,
    MlflowRegistry,
    Registry,
    RunInfo,
    open_registry,
    parse_reference,
    promote,
    read_history,
    rollback,
)
from aggregator.registry.model_folder import verify_model, write_manifest
from fedmed.errors import RegistryError


@pytest.fixture(params=["memory", "mlflow"])
def registry(request: pytest.FixtureRequest) -> Registry:
    return MemoryRegistry() if request.param == "memory" else request.getfixturevalue("mlflow_registry")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model name that no other test uses, for the shared store."""
    return "m-" + "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


def make_model(folder: Path, text: str = "weights") -> Path:
    for part in ("adapter", "merged"):
        (folder / part).mkdir(parents=True)
        (folder / part / "model.safetensors").write_text(text + part)
    (folder / "merged" / "config.json").write_text("{}")
    write_manifest(folder, {"run": "demo"})
    return folder


def publish(registry: Registry, name: str, folder: Path, key: str = "k1", **more: object) -> str:
    model = make_model(folder / f"model-{key}", key)
    return registry.publish(model, RunInfo(name=name, key=key, run_name="demo", **more)).reference  # type: ignore[arg-type]


def test_published_model_comes_back_identical(registry: Registry, name: str, tmp_path: Path) -> None:
    reference = publish(registry, name, tmp_path, tags={"method": "fedavg"}, description="three sites")
    folder = registry.fetch(reference, tmp_path / "got")
    original = tmp_path / "model-k1"
    files = sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert all((folder / file).read_bytes() == (original / file).read_bytes() for file in files)
    version = registry.get(reference)
    assert version.version == 1 and version.tags["method"] == "fedavg" and version.description == "three sites"
    assert "fedavg" in version.details() and reference in version.line()


def test_publishing_a_key_twice_makes_one_version(registry: Registry, name: str, tmp_path: Path) -> None:
    first = publish(registry, name, tmp_path)
    model = tmp_path / "model-k1"
    assert registry.publish(model, RunInfo(name=name, key="k1", run_name="demo")).reference == first
    assert len(registry.versions(name)) == 1
    assert publish(registry, name, tmp_path, "k2") == f"{name}:2"
    assert [version.version for version in registry.versions(name)] == [2, 1]


def test_alias_moves_and_rollback_returns_it(registry: Registry, name: str, tmp_path: Path) -> None:
    for key in ("k1", "k2", "k3"):
        promote(
            registry, publish(registry, name, tmp_path, key), "champion", f"gate of {key}", actor="ada", gate={"a": 1}
        )
    assert registry.get(f"{name}@champion").version == 3
    assert rollback(registry, name, "champion", "wrong", actor="eve").version == 2
    assert rollback(registry, name).version == 1
    with pytest.raises(RegistryError, match="first champion"):
        rollback(registry, name)
    assert registry.get(f"{name}@champion").version == 1
    history = read_history(registry.versions(name), "champion")
    assert [(change.action, change.from_version, change.to_version) for change in history] == [
        ("promote", 0, 1),
        ("promote", 1, 2),
        ("promote", 2, 3),
        ("rollback", 3, 2),
        ("rollback", 2, 1),
    ]
    assert history[0].actor == "ada" and history[0].gate == {"a": 1} and history[3].reason == "wrong"


def test_rollback_after_a_move_by_hand(registry: Registry, name: str, tmp_path: Path) -> None:
    references = [publish(registry, name, tmp_path, key) for key in ("k1", "k2", "k3")]
    promote(registry, references[0])
    promote(registry, references[1])
    registry.set_alias(registry.get(references[2]), "champion")
    assert rollback(registry, name).version == 2


def test_promoting_the_holder_is_refused(registry: Registry, name: str, tmp_path: Path) -> None:
    reference = publish(registry, name, tmp_path)
    promote(registry, reference)
    with pytest.raises(RegistryError, match="already"):
        promote(registry, reference)


def test_missing_things_say_what_there_is(registry: Registry, name: str, tmp_path: Path) -> None:
    assert registry.versions(name) == []
    with pytest.raises(RegistryError) as empty:
        registry.get(f"{name}@champion")
    assert "fedmed run" in empty.value.hint
    publish(registry, name, tmp_path)
    with pytest.raises(RegistryError) as missing:
        registry.get(f"{name}:7")
    assert f"{name}:1" in missing.value.hint
    with pytest.raises(RegistryError, match="is champion"):
        rollback(registry, name)


def test_attached_files_can_be_replaced(registry: Registry, name: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("1")
    version = registry.get(publish(registry, name, tmp_path, files=(report,)))
    report.write_text("2")
    registry.attach(version, [report])


def test_fetch_refuses_a_folder_in_use(registry: Registry, name: str, tmp_path: Path) -> None:
    reference = publish(registry, name, tmp_path)
    with pytest.raises(RegistryError, match="not empty"):
        registry.fetch(reference, tmp_path)


def stored_model(registry: MlflowRegistry, name: str) -> Path:
    root = Path(registry.uri.removeprefix("sqlite:///")).parent / "artifacts" / name
    return next(root.rglob("manifest.json")).parent


@pytest.mark.parametrize("consistent", [False, True], ids=["file", "file-and-manifest"])
def test_a_changed_file_is_never_handed_out(
    mlflow_registry: MlflowRegistry, name: str, tmp_path: Path, consistent: bool
) -> None:
    reference = publish(mlflow_registry, name, tmp_path)
    model = stored_model(mlflow_registry, name)
    (model / "merged" / "model.safetensors").write_text("evil")
    if consistent:
        write_manifest(model, {"run": "demo"})
    with pytest.raises(RegistryError, match="manifest.json of" if consistent else "merged/model.safetensors"):
        mlflow_registry.fetch(reference, tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_mlflow_run_tells_the_story(mlflow_registry: MlflowRegistry, name: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("{}")
    metrics = [Metric("epsilon/north", 0.5, 1), Metric("epsilon/north", 0.9, 2)]
    params = {f"key.{index}": str(index) for index in range(120)}
    reference = publish(mlflow_registry, name, tmp_path, params=params, metrics=metrics, files=[report])
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_registry.uri)
    run = client.get_run(mlflow_registry.get(reference).run_id)
    assert run.info.status == "FINISHED" and run.data.params == params
    assert run.data.metrics == {"epsilon/north": 0.9}
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"model", "report.json"}
    assert not any(
        path.suffix == ".pkl" or path.name == "MLmodel" for path in stored_model(mlflow_registry, name).rglob("*")
    )


def test_an_unfinished_run_is_replaced(mlflow_registry: MlflowRegistry, name: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone.json"
    with pytest.raises(RegistryError):
        publish(mlflow_registry, name, tmp_path, files=[gone])
    gone.write_text("{}")
    run = RunInfo(name=name, key="k1", run_name="demo", files=[gone])
    assert mlflow_registry.publish(tmp_path / "model-k1", run).version == 1
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_registry.uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_store_that_is_down_is_an_error_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(RegistryError, match="does not answer") as error:
        MlflowRegistry(f"http://user:secret@127.0.0.1:{free_port()}").versions("fedmed")
    assert time.monotonic() - started < 20
    assert "secret" not in error.value.message and "replay" in error.value.hint


def test_a_store_that_goes_down_in_a_call_is_told_as_one_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = MlflowRegistry(f"http://127.0.0.1:{free_port()}")

    def call() -> None:
        raise ConnectionError("HTTPConnectionPool(host='127.0.0.1'): Max retries exceeded with url: /api/2.0/mlflow")

    monkeypatch.setattr(registry, "_client", call)
    with pytest.raises(RegistryError, match=r"does not answer: .*refused"):
        registry.versions("fedmed")


def test_an_address_with_a_password_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_PASSWORD") as error:
        open_registry("http://user:hunter2@mlflow.example.org", tmp_path)
    assert "hunter2" not in error.value.message + error.value.hint


def test_a_store_that_hangs_is_an_error_within_seconds(silent_server: str) -> None:
    started = time.monotonic()
    with pytest.raises(RegistryError, match="does not answer"):
        MlflowRegistry(silent_server).versions("fedmed")
    assert time.monotonic() - started < 20


def test_a_database_that_cannot_be_opened_is_a_registry_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError):
        MlflowRegistry(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}").versions("fedmed")


def test_what_the_database_says_is_one_line(
    mlflow_registry: MlflowRegistry, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """MLflow would log a traceback, and its own words begin with SQLAlchemy's advice to programmers."""
    mlflow_registry.versions(name)
    with sqlite3.connect(mlflow_registry.uri.removeprefix("sqlite:///"), isolation_level=None) as database:
        database.execute("ALTER TABLE runs RENAME TO elsewhere")
        try:
            with pytest.raises(RegistryError, match=r"mlflow\.db: no such table: runs$") as error:
                mlflow_registry.log(RunInfo(name=name, key="", run_name="demo"), "round/1", [])
        finally:
            database.execute("ALTER TABLE elsewhere RENAME TO runs")
    assert "make room or mend the store's disk" in error.value.hint and "replay RUN" in error.value.hint
    assert "Traceback" not in "".join(capfd.readouterr())


def test_registry_package_does_not_import_mlflow() -> None:
    code = "import sys, aggregator.registry, aggregator.registry.publish; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


@pytest.mark.parametrize("text", ["fedmed", "fedmed@", "fedmed:0", "fedmed:x", "@champion", "a'b:1", "../x:1", ""])
def test_wrong_references_are_refused(text: str) -> None:
    with pytest.raises(RegistryError, match="not of the form"):
        parse_reference(text)


@pytest.mark.parametrize("text", ["fedmed@latest", "fedmed@V12"])
def test_reserved_aliases_are_refused_before_the_store_is_asked(text: str) -> None:
    with pytest.raises(RegistryError, match="is reserved"):
        parse_reference(text)


@pytest.mark.parametrize("text", ["fedmed@champion", "fedmed:7", "my-model_2:12", "fedmed@v1-rc"])
def test_references_print_as_they_were_written(text: str) -> None:
    assert str(parse_reference(text)) == text


def test_verify_finds_every_kind_of_damage(tmp_path: Path) -> None:
    def damaged(case: str) -> Path:
        return make_model(tmp_path / case)

    verify_model(damaged("whole"))
    (damaged("missing") / "merged" / "config.json").unlink()
    (damaged("extra") / "merged" / "more.json").write_text("{}")
    (damaged("code") / "merged" / "modeling.py").write_text("")
    (damaged("link") / "merged" / "link.json").symlink_to("/etc/hostname")
    folder = damaged("schema")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    expected = {
        "missing": "merged/config.json is missing",
        "extra": "merged/more.json",
        "code": "modeling.py",
        "link": "link.json",
        "schema": "schema version 99",
        "nothing": "holds no manifest.json",
    }
    for case, text in expected.items():
        with pytest.raises(RegistryError, match=text):
            verify_model(tmp_path / case)
