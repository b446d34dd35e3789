"""Runs on a SuperLink: submitting FedMed's bundle, following its events, asking after it, stopping it (flwr 1.39).

run = submit(superlink.control, run_dir, home)
for event in follow(run, EventReader(run_dir / "events.jsonl"), group):
    print(event)

Whether the ServerApp lives is told by the lock that it holds on the run's folder, whose kernel is ours: no process list and
no question to the SuperLink is as exact. Only before it has come that far is the SuperLink asked.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator.runs import locks
from aggregator.runs.processes import ProcessGroup
from aggregator.superlink.launcher import START_TIMEOUT_S, executable, flower_env, require_loopback
from aggregator.watching.events import LAST_KINDS, EventReader
from fedmed.errors import FederationError

BUNDLE = Path(__file__).parents[1] / "bundle"
CONNECTION = "fedmed"
# How long the ServerApp may load before its SuperLink is asked after it, and how often it is asked then, in seconds.
LOADING_S, ASK_AGAIN_S = 10.0, 5.0


class ServerGone(FederationError):
    """The server app or its SuperLink ended without finishing the run: submitted again, it goes on."""


@dataclass(frozen=True, slots=True)
class Run:
    """A submitted run and how to ask about it; `home` holds Flower's connection to its SuperLink."""

    run_id: int
    home: Path


def submit(
    control: str,
    run_dir: Path,
    home: Path,
    *,
    root_certificates: Path | None = None,
    bundle: Path = BUNDLE,
) -> Run:
    """Submits the bundle to a SuperLink's Control address; the ServerApp works in `run_dir`, on the SuperLink's host.

    Args:
        bundle: folder of the Flower app; FedMed's own by default.

    Raises:
        FederationError: nobody answers at `control`, or the SuperLink refuses the bundle.
    """
    env = flower_env(home / "cli")
    _write_connection(Path(env["FLWR_HOME"]), control, root_certificates)
    run_config = home / "cli" / "run-config.toml"
    run_config.write_text(f"run-dir = {json.dumps(str(run_dir.resolve()))}\n", encoding="utf-8")
    reply = _flwr(env, "run", str(bundle), CONNECTION, "--run-config", str(run_config))
    return Run(int(reply["run-id"]), home)


def stop_run(run: Run) -> None:
    """Asks the SuperLink to stop the run. Raises FederationError when it does not answer."""
    _flwr(flower_env(run.home / "cli"), "stop", str(run.run_id), CONNECTION)


def run_status(run: Run) -> str:
    """What the SuperLink says about the run, for example `running` or `finished:failed`; takes about a second."""
    runs = _flwr(flower_env(run.home / "cli"), "list", CONNECTION, "--run-id", str(run.run_id))["runs"]
    return str(runs[0]["status"])


def follow(
    run: Run | None, events: EventReader, group: ProcessGroup | None = None, *, poll_s: float = 0.2
) -> Iterator[dict[str, Any]]:
    """Yields the run's new events as they are written, up to `finished` or `failed`.

    Args:
        run: None for a ServerApp that runs already, whoever submitted it.
        events: of the run's folder; what it has read before is not told again.
        group: of the SuperLink, where it was started here.

    Raises:
        ServerGone: the SuperLink died, or the ServerApp ended without a last event. A site may come and go.
        FederationError: somebody stopped the run.
    """
    watch = _ServerAppWatch(run, events.path.parent / locks.SERVER_LOCK, group)
    while True:
        why = watch.why_it_ended()
        for event in events.new():
            yield event
            if event["kind"] in LAST_KINDS:
                return
        if why is not None:  # looked up before the events were read, so nothing it wrote can have been missed
            raise why
        time.sleep(poll_s)


class _ServerAppWatch:
    """Notices that the ServerApp is gone: by the lock it holds, and before it does, by asking the SuperLink."""

    def __init__(self, run: Run | None, lock: Path, group: ProcessGroup | None) -> None:
        self._run, self._lock, self._group = run, lock, group
        self._began = run is None
        self._next = time.monotonic()
        self._ask_at = self._next + LOADING_S

    def why_it_ended(self) -> FederationError | None:
        now = time.monotonic()
        if now < self._next:  # looking at all processes costs more than reading events
            return None
        self._next = now + 1.0
        try:
            if self._group is not None:
                self._group.check()  # a site that is gone is left out by the round loop, and named
        except FederationError as error:
            return ServerGone(error.message.partition("; its log ends")[0], error.hint)
        if locks.holder(self._lock) is not None:
            self._began = True
            return None
        if self._began and self._group is not None:
            return _ended()  # its SuperLink is ours: nobody else stops a run there
        if self._began:
            return self._gone()
        if now < self._ask_at:
            return None
        self._ask_at = now + ASK_AGAIN_S
        return self._gone(only_if_finished=True)

    def _gone(self, only_if_finished: bool = False) -> FederationError | None:
        status = ""
        if self._run is not None:
            try:
                status = run_status(self._run)
            except FederationError as error:
                return ServerGone(error.message, error.hint)
        if status == "finished:stopped":
            return FederationError("the run was stopped on its SuperLink", "fedmed resume RUN goes on with it")
        if only_if_finished and not status.startswith("finished"):
            return None
        return _ended()


def _ended() -> ServerGone:
    return ServerGone(
        "the server app ended without finishing the run",
        "is FedMed installed where the SuperLink runs? See server-app.log and superlink.log in the run's logs",
    )


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
    except subprocess.TimeoutExpired:
        reply = {"error-message": f"no answer within {START_TIMEOUT_S:g} s"}
    except ValueError:  # no JSON: it broke down itself, such as over a missing package
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        reply = {"error-message": f"no answer, but {said[-1][:300]}"}
    if not reply.get("success"):
        raise FederationError(
            f"`flwr {arguments[0]}` failed: {' '.join(str(reply.get('error-message')).split())}",
            "see that the SuperLink runs and that its Control address is right; one over TLS needs --root-certificates",
        )
    return dict(reply)
