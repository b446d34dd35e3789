"""Runs on a SuperLink: submitting FedMed's bundle, following its events, asking after it, stopping it (flwr 1.39).

run = submit(superlink.control, run_dir, home)
for event in follow(run, run_dir / "events.jsonl", group):
    print(event)
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator.events import LAST_KINDS, EventReader
from aggregator.launcher import START_TIMEOUT_S, executable, flower_env, require_loopback
from aggregator.processes import ProcessGroup
from fedmed.errors import FederationError

BUNDLE = Path(__file__).parent / "bundle"
CONNECTION = "fedmed"
SERVER_APP = "flwr-serverapp"


@dataclass(frozen=True, slots=True)
class Run:
    """A submitted run and how to ask about it."""

    run_id: int
    home: Path
    local: bool


def submit(
    control: str,
    run_dir: Path,
    home: Path,
    *,
    root_certificates: Path | None = None,
    local: bool = True,
    bundle: Path = BUNDLE,
) -> Run:
    """Submits the bundle to a SuperLink's Control address; the ServerApp works in `run_dir`, on the SuperLink's host.

    Args:
        local: the SuperLink runs in the caller's ProcessGroup, so the ServerApp's process can be watched.
        bundle: folder of the Flower app; FedMed's own by default.

    Raises:
        FederationError: nobody answers at `control`, or the SuperLink refuses the bundle.
    """
    env = flower_env(home / "cli")
    _write_connection(Path(env["FLWR_HOME"]), control, root_certificates)
    run_config = home / "cli" / "run-config.toml"
    run_config.write_text(f"run-dir = {json.dumps(str(run_dir.resolve()))}\n", encoding="utf-8")
    reply = _flwr(env, "run", str(bundle), CONNECTION, "--run-config", str(run_config))
    return Run(int(reply["run-id"]), home, local)


def stop_run(run: Run) -> None:
    """Asks the SuperLink to stop the run. Raises FederationError when it does not answer."""
    _flwr(flower_env(run.home / "cli"), "stop", str(run.run_id), CONNECTION)


def run_status(run: Run) -> str:
    """What the SuperLink says about the run, for example `running` or `finished:failed`; takes about a second."""
    runs = _flwr(flower_env(run.home / "cli"), "list", CONNECTION, "--run-id", str(run.run_id))["runs"]
    return str(runs[0]["status"])


def follow(
    run: Run, events_path: Path, group: ProcessGroup | None = None, *, poll_s: float = 0.2
) -> Iterator[dict[str, Any]]:
    """Yields the run's events as they are written, up to `finished` or `failed`.

    Raises:
        FederationError: the SuperLink died, or the ServerApp ended without a last event. A site may come and go.
    """
    reader, watch = EventReader(events_path), _ServerAppWatch(run, group)
    while True:
        ended = watch.has_ended()
        for event in reader.new():
            yield event
            if event["kind"] in LAST_KINDS:
                return
        if ended:  # looked up before the events were read, so nothing it wrote can have been missed
            raise FederationError(
                "the server app ended without finishing the run",
                "is FedMed installed where the SuperLink runs? See server-app.log and superlink.log in the run's logs",
            )
        time.sleep(poll_s)


class _ServerAppWatch:
    """Notices that the ServerApp is gone: by its process where that is ours, else by asking the SuperLink."""

    def __init__(self, run: Run, group: ProcessGroup | None) -> None:
        self._run, self._group = run, group
        self._started = False
        self._next = time.monotonic()

    def has_ended(self) -> bool:
        if time.monotonic() < self._next:  # looking at all processes costs more than reading events
            return False
        if self._group is not None and self._run.local:
            self._group.check()  # a site that is gone is left out by the round loop, and named
        if self._group is None or not self._run.local:
            self._next = time.monotonic() + 5.0
            return run_status(self._run).startswith("finished")
        self._next = time.monotonic() + 1.0
        running = SERVER_APP in self._group.running()
        self._started = self._started or running
        return self._started and not running


def _write_connection(home: Path, control: str, root_certificates: Path | None) -> None:
    lines = [f"[superlink.{CONNECTION}]", f"address = {json.dumps(control)}"]
    if root_certificates is None:
        require_loopback(control)
        lines.append("insecure = true")
    else:
        lines.append(f"root-certificates = {json.dumps(str(root_certificates.resolve()))}")
    (home / "config.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _flwr(env: Mapping[str, str], *arguments: str) -> dict[str, Any]:
    """Runs Flower's command line and returns its JSON answer."""
    command = [executable("flwr"), *arguments, "--format", "json"]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
        reply = json.loads(done.stdout[done.stdout.index("{") :])
    except (subprocess.TimeoutExpired, ValueError):
        reply = {"error-message": "no answer"}
    if not reply.get("success"):
        raise FederationError(
            f"`flwr {arguments[0]}` failed: {' '.join(str(reply.get('error-message')).split())}",
            "see that the SuperLink runs and that its Control address is right",
        )
    return dict(reply)
