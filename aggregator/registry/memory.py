"""A registry in this process's memory: for tests and for trying out; it keeps the same contract as MlflowRegistry.

>>> registry = MemoryRegistry()
>>> registry.versions("fedmed")
[]
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from aggregator.registry.base import KEY_TAG, MANIFEST_TAG, Metric, RunInfo, Version, find, parse_reference
from aggregator.registry.fetching import fetched_folder
from aggregator.registry.model_folder import MANIFEST, file_sha256, verify_model
from fedmed.errors import RegistryError


class MemoryRegistry:
    """Attributes: `runs`: run id -> RunInfo; `files`: run id -> attached file name -> bytes; `down`: refuse everything."""

    def __init__(self) -> None:
        self.runs: dict[str, RunInfo] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.down = False
        self.logged: dict[tuple[str, str], Sequence[Metric]] = {}  # (run name, entry) -> points
        self.measured: dict[tuple[str, str], Sequence[Metric]] = {}  # (run id, entry) -> points
        self._turn = threading.RLock()
        self._versions: dict[str, list[Version]] = {}
        self._models: dict[str, dict[str, bytes]] = {}
        self._ids = itertools.count(1)

    def log(self, run: RunInfo, entry: str, metrics: Sequence[Metric]) -> None:
        self._check_up()
        self.logged.setdefault((run.run_name, entry), metrics)

    def exclusive(self, name: str) -> AbstractContextManager[Any]:
        return self._turn

    def publish(self, model_dir: Path, run: RunInfo) -> Version:
        self._check_up()
        verify_model(model_dir)
        for version in self.versions(run.name):
            if version.tags.get(KEY_TAG) == run.key:
                return version
        run_id = f"run{next(self._ids)}"
        self.runs[run_id] = run
        self._models[run_id] = {
            path.relative_to(model_dir).as_posix(): path.read_bytes() for path in model_dir.rglob("*") if path.is_file()
        }
        known = self._versions.setdefault(run.name, [])
        tags = {**run.tags, KEY_TAG: run.key, MANIFEST_TAG: file_sha256(model_dir / MANIFEST)}
        created = datetime.now(UTC).isoformat(timespec="seconds")
        version = Version(run.name, len(known) + 1, run_id, (), tags, run.description, created)
        known.append(version)
        self.attach(version, run.files)
        return version

    def attach(self, version: Version, files: Sequence[Path], under: str = "") -> None:
        self._check_up()
        named = {(PurePosixPath(under) / path.name).as_posix(): path.read_bytes() for path in files}
        self.files.setdefault(version.run_id, {}).update(named)

    def measure(self, version: Version, entry: str, metrics: Sequence[Metric]) -> None:
        self._check_up()
        self.measured.setdefault((version.run_id, entry), metrics)

    def versions(self, name: str) -> list[Version]:
        self._check_up()
        return self._versions.get(name, [])[::-1]

    def get(self, reference: str) -> Version:
        target = parse_reference(reference)
        return find(self.versions(target.name), target)

    def fetch(self, reference: str, destination: Path) -> Path:
        version = self.get(reference)
        with fetched_folder(version, destination) as part:
            for name, data in self._models[version.run_id].items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                (part / name).write_bytes(data)
        return destination

    def set_alias(self, version: Version, alias: str) -> Version:
        self._check_up()
        for known in self._versions[version.name]:
            aliases = set(known.aliases) - {alias} | ({alias} if known.version == version.version else set())
            self._replace(known, aliases=tuple(sorted(aliases)))
        return self.get(version.reference)

    def tag(self, version: Version, tags: Mapping[str, str]) -> Version:
        known = self.get(version.reference)
        self._replace(known, tags={**known.tags, **tags})
        return self.get(version.reference)

    def _replace(self, version: Version, **changes: object) -> None:
        self._versions[version.name][version.version - 1] = dataclasses.replace(version, **changes)  # type: ignore[arg-type]

    def _check_up(self) -> None:
        if self.down:
            raise RegistryError("the registry cannot be reached", "start it again; the run is complete on disk")
