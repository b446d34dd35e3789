"""MLflow for the suite: its server as a real process on loopback, and what a store's database holds, read past MLflow.

server = TrackingServer(lab).start()
server.kill()                            # kill -9, its workers too
Stored(server.database).points()         # {("test_accuracy", 0): 1, ...}: how often each point is there
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from aggregator.runs.processes import Managed
from aggregator.superlink.launcher import free_ports
from tests.faults.lab import Lab, wait_for


class TrackingServer:
    """`mlflow server` on one port and one sqlite database, through any number of starts."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._folder = lab, lab.root / "mlflow"
        self._folder.mkdir()
        self.database = self._folder / "server.db"
        (self._port,) = free_ports(1)
        self._starts = 0
        self._process: Managed | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> TrackingServer:
        """Starts it and waits until it answers."""
        self._starts += 1
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = self._lab.start(f"mlflow-{self._starts}", command, **quiet)
        wait_for(self._answers, "the MLflow server to answer")
        return self

    def kill(self) -> None:
        """kill -9 of the server and its workers: they are a process group of their own."""
        assert self._process is not None
        os.killpg(self._process.process.pid, signal.SIGKILL)
        self._process.process.wait(60)
        wait_for(lambda: not self._answers(must_run=False), "the port to be silent")

    def _answers(self, must_run: bool = True) -> bool:
        assert self._process is not None
        if must_run:
            self._process.require_running()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:  # noqa: S310  http, made above
                return bool(answer.status == 200)
        except OSError:
            return False


class Stored:
    """What an MLflow database holds, by its tables: neither MLflow nor the product reads them here."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def points(self) -> Counter[tuple[str, int]]:
        """How often each point of each curve is there, over all runs."""
        return Counter((str(key), int(step)) for key, step in self._rows("SELECT key, step FROM metrics"))

    def runs(self) -> int:
        return len(self._rows("SELECT run_uuid FROM runs"))

    def models(self) -> list[str]:
        """The model's name of each version."""
        return [str(row[0]) for row in self._rows("SELECT name FROM model_versions ORDER BY name")]

    def holder(self, alias: str) -> list[int]:
        """The versions that have the alias: one at most, if all is well."""
        return [
            int(row[0]) for row in self._rows("SELECT version FROM registered_model_aliases WHERE alias = ?", alias)
        ]

    def moves(self, alias: str) -> list[dict[str, Any]]:
        """The recorded moves of an alias, the first one first."""
        rows = self._rows("SELECT value FROM model_version_tags WHERE key GLOB ? ORDER BY key", f"{alias}.[0-9]*")
        return [json.loads(row[0]) for row in rows]

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True, timeout=60)) as connection:
            return connection.execute(query, values).fetchall()
