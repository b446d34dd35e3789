"""The registry on MLflow: files and tags only, no flavor, no pickle, nothing that runs when it is loaded.

    MlflowRegistry("sqlite:////srv/fedmed/mlflow.db")      # artifacts in the folder `artifacts` beside the database
    MlflowRegistry("https://mlflow.consortium.example")    # a tracking server; it decides where artifacts go

A run holds params, metrics per round, tags and report; the version points at the run's folder `model`. Only the
consortium has the store's credentials (MLFLOW_TRACKING_USERNAME, ...PASSWORD or ...TOKEN); sites never see it.

| state of the store            | what happens                                                      |
| ----------------------------- | ----------------------------------------------------------------- |
| server does not answer        | RegistryError within seconds, before any MLflow retry             |
| cut off in the middle         | the run is marked failed; the next publish takes it up again      |
| same entry logged again       | nothing is added: the run's tag `fedmed.logged/ENTRY` tells       |
| same key published again      | the first version is returned, nothing is added                   |
"""

from __future__ import annotations

import contextlib
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from aggregator.registry.base import KEY_TAG, MANIFEST_TAG, RUN_TAG, Metric, RunInfo, Version, find, parse_reference
from aggregator.registry.database import create_database
from aggregator.registry.exclusive import claimed, locked_file
from aggregator.registry.fetching import fetched_folder
from aggregator.registry.model_folder import MANIFEST, file_sha256, verify_model
from fedmed.errors import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_TIMEOUT_S = 3.0
_MODEL_PATH = "model"
_LOGGED_TAG = "fedmed.logged"
_CLAIM_TAG = "fedmed.claim"
_NOTE_TAG = "mlflow.note.content"
# Without it MLflow's pages open in their GenAI view, which has no curves.
_KIND_TAG, _KIND = "mlflow.experimentKind", "custom_model_development"
_LATER = "or name another store with --uri; the run is complete on disk: fedmed registry replay RUN"
_HINT, _DISK_HINT = f"start the store, {_LATER}", f"make room or mend the store's disk, {_LATER}"


class MlflowRegistry:
    """See `Registry` for the methods.

    Args:
        uri: MLflow tracking URI, sqlite:/// or http(s)://; it serves as the registry URI too.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._made: MlflowClient | None = None
        self._held: set[str] = set()  # models whose aliases this process moves at present

    def publish(self, model_dir: Path, run: RunInfo) -> Version:
        verify_model(model_dir)
        for version in self.versions(run.name):
            if version.tags.get(KEY_TAG) == run.key:
                return version
        with self._store() as client:
            run_id = _find_or_start(client, self._experiment(client, run.name), run)
            try:
                _log_run(client, run_id, run, model_dir)
                number = _create_version(client, run_id, run, file_sha256(model_dir / MANIFEST))
            except BaseException:
                with contextlib.suppress(Exception):
                    client.set_terminated(run_id, "FAILED")
                raise
            client.set_terminated(run_id, "FINISHED")
        return self.get(f"{run.name}:{number}")

    def log(self, run: RunInfo, entry: str, metrics: Sequence[Metric]) -> None:
        with self._store() as client:
            run_id = _find_or_start(client, self._experiment(client, run.name), run)
            _log_once(client, run_id, entry, metrics)

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        parse_reference(f"{name}:1")
        if name in self._held:  # a decision and the moves that it makes are one
            yield
            return
        with self._turn(name):
            self._held.add(name)
            try:
                yield
            finally:
                self._held.discard(name)

    def _turn(self, name: str) -> contextlib.AbstractContextManager[None]:
        if (database := _sqlite_path(self.uri)) is not None:
            return locked_file(database.with_name(f"{database.name}.{name}.lock"), name)
        if not self.versions(name):  # nothing to move, and nowhere to keep a claim
            return contextlib.nullcontext()
        return claimed(name, lambda: self._claim(name), lambda claim: self._set_claim(name, claim))

    def _claim(self, name: str) -> str:
        with self._store() as client:
            return str(client.get_registered_model(name).tags.get(_CLAIM_TAG, ""))

    def _set_claim(self, name: str, claim: str) -> None:
        with self._store() as client:
            client.set_registered_model_tag(name, _CLAIM_TAG, claim)

    def attach(self, version: Version, files: Sequence[Path], under: str = "") -> None:
        with self._store() as client:
            for path in files:
                client.log_artifact(version.run_id, str(path), under or None)

    def measure(self, version: Version, entry: str, metrics: Sequence[Metric]) -> None:
        with self._store() as client:
            _log_once(client, version.run_id, entry, metrics)

    def versions(self, name: str) -> list[Version]:
        parse_reference(f"{name}:1")  # the name goes into a filter expression, so it must be a plain word
        with self._store() as client:
            models = client.search_registered_models(filter_string=f"name='{name}'")
            if not models:
                return []
            aliases = {alias: int(number) for alias, number in models[0].aliases.items()}
            found = [_version(raw, aliases) for raw in _all_versions(client, name)]
        return sorted(found, key=lambda version: version.version, reverse=True)

    def get(self, reference: str) -> Version:
        target = parse_reference(reference)
        return find(self.versions(target.name), target)

    def fetch(self, reference: str, destination: Path) -> Path:
        version = self.get(reference)
        with fetched_folder(version, destination) as part, self._store() as client:
            # By run, not by models:/ URI: that would ask the process's global registry, not this one.
            model = Path(client.download_artifacts(version.run_id, _MODEL_PATH, str(part)))
            for path in model.iterdir():
                path.rename(part / path.name)
            model.rmdir()
        return destination

    def set_alias(self, version: Version, alias: str) -> Version:
        parse_reference(f"{version.name}@{alias}")
        with self._store() as client:
            client.set_registered_model_alias(version.name, alias, str(version.version))
        return self.get(version.reference)

    def tag(self, version: Version, tags: Mapping[str, str]) -> Version:
        with self._store() as client:
            for name, value in tags.items():
                client.set_model_version_tag(version.name, str(version.version), name, value)
        return self.get(version.reference)

    @contextlib.contextmanager
    def _store(self) -> Iterator[MlflowClient]:
        """The client; whatever the store throws becomes a RegistryError of one line."""
        try:
            yield self._client()
        except RegistryError:
            raise
        except Exception as error:
            # SQLAlchemy and MLflow raise their own trees and both import slowly, so the module's name decides.
            if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in {"mlflow", "sqlalchemy"}:
                raise
            _probe(self.uri)  # of a server that has gone meanwhile MLflow tells its retries, this its name
            hint = _HINT if _sqlite_path(self.uri) is None else _DISK_HINT
            raise RegistryError(f"MLflow at {_masked(self.uri)}: {_reason(error)}", hint) from error

    def _client(self) -> MlflowClient:
        _probe(self.uri)
        if self._made is None:
            _configure_mlflow()
            if (database := _sqlite_path(self.uri)) is not None:
                create_database(database)
            from mlflow import MlflowClient

            self._made = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._made

    def _experiment(self, client: MlflowClient, name: str) -> str:
        known = client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        database = _sqlite_path(self.uri)
        # Without a location MLflow writes to ./mlruns of whatever folder the command was called from.
        location = (database.parent / "artifacts" / name).as_uri() if database else None
        note = "FedMed: one run per federation, from data to the published version. Open a run for its story."
        return str(client.create_experiment(name, artifact_location=location, tags={_NOTE_TAG: note, _KIND_TAG: _KIND}))


def _configure_mlflow() -> None:
    """Quick failure, no telemetry, no chatter; a value that the user has set stays."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Whatever it would log with a traceback it raises too, and that becomes a RegistryError of one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _probe(uri: str) -> None:
    """Raise RegistryError unless something answers at an http(s) URI; any answer, also a refusal, will do."""
    parts = urlparse(uri)
    if parts.scheme not in {"http", "https"}:
        return
    host = parts.hostname or ""
    address = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}/health"
    try:
        urllib.request.urlopen(address, timeout=PROBE_TIMEOUT_S).close()  # noqa: S310  http(s), checked above
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise RegistryError(f"MLflow at {_masked(uri)} does not answer: {reason}", _HINT) from None


def _reason(error: BaseException) -> str:
    """One line: the database driver's own words where SQLAlchemy has wrapped them in its advice and the SQL."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "orig", None) is None:
        cause = cause.__cause__
    told = str(error if cause is None else cause.orig).strip().splitlines()  # type: ignore[attr-defined]
    return (told or [type(error).__name__])[0][:300]


def _masked(uri: str) -> str:
    """The URI without user name and password."""
    parts = urlparse(uri)
    return uri if parts.password is None and parts.username is None else uri.replace(parts.netloc, parts.hostname or "")


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _find_or_start(client: MlflowClient, experiment_id: str, run: RunInfo) -> str:
    """The run of this name that has no other version, begun when there is none."""
    found = client.search_runs([experiment_id], filter_string=f"tags.`{RUN_TAG}` = '{run.run_name}'")
    for known in found:
        if not run.key or known.data.tags.get(KEY_TAG, run.key) == run.key:
            return str(known.info.run_id)
    tags = {**run.tags, RUN_TAG: run.run_name, "mlflow.source.name": "fedmed run"}
    run_id = str(client.create_run(experiment_id, tags=tags, run_name=run.run_name).info.run_id)
    _log_params(client, run_id, run.params)
    return run_id


def _log_params(client: MlflowClient, run_id: str, given: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    params = [Param(name, str(value)) for name, value in given.items()]
    for start in range(0, len(params), 100):  # MLflow's limit of one batch
        client.log_batch(run_id, params=params[start : start + 100])


def _log_once(client: MlflowClient, run_id: str, entry: str, given: Sequence[Metric]) -> None:
    from mlflow.entities import Metric as Point
    from mlflow.entities import RunTag

    tag = f"{_LOGGED_TAG}/{entry}"
    if tag in client.get_run(run_id).data.tags:
        return
    now = datetime.now(UTC).timestamp()
    points = [Point(item.name, item.value, int(1000 * (item.at or now)), item.step) for item in given]
    for start in range(0, len(points), 900):  # MLflow's limit of one batch is 1000
        client.log_batch(run_id, metrics=points[start : start + 900])
    # After the points: cut off in between, they are sent again with the same times, and MLflow keeps one of each.
    client.log_batch(run_id, tags=[RunTag(tag, datetime.now(UTC).isoformat(timespec="seconds"))])


def _log_run(client: MlflowClient, run_id: str, run: RunInfo, model_dir: Path) -> None:
    """Everything of a finished run; what a run that was cut off holds already is the same, and stays."""
    _log_params(client, run_id, run.params)
    for step in sorted({metric.step for metric in run.metrics}):
        _log_once(client, run_id, f"round/{step}", [metric for metric in run.metrics if metric.step == step])
    for name, value in {**run.tags, _NOTE_TAG: run.description, KEY_TAG: run.key}.items():
        client.set_tag(run_id, name, value)
    client.log_artifacts(run_id, str(model_dir), _MODEL_PATH)
    for path in run.files:
        client.log_artifact(run_id, str(path))


def _create_version(client: MlflowClient, run_id: str, run: RunInfo, manifest_sha256: str) -> int:
    if not client.search_registered_models(filter_string=f"name='{run.name}'"):
        client.create_registered_model(run.name, description="Merged models of FedMed federations; see each version.")
    tags = {**run.tags, KEY_TAG: run.key, MANIFEST_TAG: manifest_sha256}
    source = f"runs:/{run_id}/{_MODEL_PATH}"
    raw = client.create_model_version(run.name, source, run_id, tags=tags, description=run.description)
    return int(raw.version)


def _all_versions(client: MlflowClient, name: str) -> list[Any]:
    found: list[Any] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name='{name}'", max_results=1000, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def _version(raw: Any, aliases: Mapping[str, int]) -> Version:
    number = int(raw.version)
    created = datetime.fromtimestamp(raw.creation_timestamp / 1000, UTC).isoformat(timespec="seconds")
    mine = tuple(sorted(alias for alias, holder in aliases.items() if holder == number))
    return Version(raw.name, number, raw.run_id or "", mine, dict(raw.tags), raw.description or "", created)
