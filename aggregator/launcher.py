"""Everything about Flower's programs, flags and environment; nothing else in FedMed knows them (flwr 1.39, gRPC fleet).

    with ProcessGroup(run_dir / "logs") as group:
        superlink = start_superlink(group, home)
        start_supernode(group, "north", superlink.fleet, socket_path, home)
        run = submit(superlink.control, run_dir, home)
        for event in follow(run, run_dir / "events.jsonl", group):
            print(event)

Why each setting is there:

| setting                                    | reason                                                           |
| ------------------------------------------ | ---------------------------------------------------------------- |
| FLWR_TELEMETRY_ENABLED=0, no update check  | a hospital's network sends nothing that was not agreed upon      |
| --disable-runtime-dependency-installation  | SuperLink would run an installer for each run                    |
| FLWR_SUPEREXEC_TASK_POLL_INTERVAL          | the default of 1 s is waited for in every exchange at every node |
| FLWR_HOME per process, in the run's folder | bundles are unpacked there; nodes must not share it              |
| PATH begins with this interpreter's folder | SuperLink and SuperNode find their helpers by name               |
| --insecure                                 | on loopback only; any other address needs certificates           |
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator.events import LAST_KINDS, EventReader
from aggregator.processes import Managed, ProcessGroup
from fedmed.errors import FederationError

BUNDLE = Path(__file__).parent / "bundle"
CONNECTION = "fedmed"
SERVER_APP = "flwr-serverapp"
SUPERLINK = "superlink"
LOOPBACK = "127.0.0.1"
TASK_POLL_S = 0.25
START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Superlink:
    """A running SuperLink: `fleet` is where SuperNodes connect (gRPC), `control` where runs are submitted."""

    fleet: str
    control: str


@dataclass(frozen=True, slots=True)
class Run:
    """A submitted run and how to ask about it."""

    run_id: int
    home: Path
    local: bool


def free_ports(count: int) -> list[int]:
    """Different TCP ports that are free on the loopback interface at present."""
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def free_port() -> int:
    """One free TCP port."""
    return free_ports(1)[0]


def require_free(port: int, purpose: str, host: str = LOOPBACK) -> None:
    """Raises FederationError, naming the port, when another process listens on it."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise FederationError(
            f"port {port} on {host} is in use or may not be taken, expected it free for {purpose} ({error.strerror})",
            "choose another port, or stop the program that holds it",
        ) from None


def executable(name: str) -> str:
    """The program beside this Python interpreter. Raises FederationError when it is not installed."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise FederationError(f"{name} is not installed beside {sys.executable}", "install fedmed[aggregator]")
    return str(path)


def flower_env(home: Path) -> dict[str, str]:
    """This process's environment with what every Flower program needs; `home` becomes its FLWR_HOME."""
    home.mkdir(parents=True, exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    search = [os.path.abspath(item) for item in env.get("PYTHONPATH", "").split(os.pathsep) if item]
    settings = {
        "FLWR_HOME": str(home.resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(TASK_POLL_S),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }
    return env | settings | ({"PYTHONPATH": os.pathsep.join(search)} if search else {})


def start_superlink(
    group: ProcessGroup, home: Path, *, fleet_port: int = 0, control_port: int = 0, database: Path | None = None
) -> Superlink:
    """Starts a SuperLink on loopback and waits until both its ports answer. Port 0 takes a free one.

    Raises:
        FederationError: a port is in use, or the SuperLink died (with the end of its log) or does not answer.
    """
    free = free_ports(2)
    fleet_port, control_port = fleet_port or free[0], control_port or free[1]
    require_free(fleet_port, "the SuperLink's Fleet API")
    require_free(control_port, "the SuperLink's Control API")
    command = [executable("flower-superlink"), "--insecure", "--disable-runtime-dependency-installation"]
    command += ["--fleet-api-type", "grpc-rere", "--fleet-api-address", f"{LOOPBACK}:{fleet_port}"]
    command += ["--host", LOOPBACK, "--port", str(control_port)]
    command += ["--database", str(database)] if database else []
    managed = group.start(SUPERLINK, command, flower_env(home / "superlink"))
    for port in (fleet_port, control_port):
        _wait_for_port(port, managed)
    return Superlink(f"{LOOPBACK}:{fleet_port}", f"{LOOPBACK}:{control_port}")


def start_supernode(
    group: ProcessGroup,
    name: str,
    superlink: str,
    socket_path: Path,
    home: Path,
    *,
    root_certificates: Path | None = None,
) -> Managed:
    """Starts the SuperNode of one site: `superlink` is the Fleet address, `socket_path` the site daemon's socket."""
    command = [executable("flower-supernode"), *_tls_flags(superlink, root_certificates)]
    command += ["--grpc-rere", "--superlink", superlink, "--host", LOOPBACK, "--port", str(free_port())]
    command += ["--node-config", f"site-socket={json.dumps(str(socket_path))}"]
    return group.start(f"supernode-{name}", command, flower_env(home / f"supernode-{name}"), essential=False)


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


def _tls_flags(address: str, root_certificates: Path | None) -> list[str]:
    if root_certificates is not None:
        return ["--root-certificates", str(root_certificates)]
    _require_loopback(address)
    return ["--insecure"]


def _require_loopback(address: str) -> None:
    host = address.rpartition(":")[0].strip("[]")
    if host not in (LOOPBACK, "localhost", "::1"):
        raise FederationError(
            f"{address} is not a loopback address, expected TLS for it", "give the root certificate of its SuperLink"
        )


def _write_connection(home: Path, control: str, root_certificates: Path | None) -> None:
    lines = [f"[superlink.{CONNECTION}]", f"address = {json.dumps(control)}"]
    if root_certificates is None:
        _require_loopback(control)
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


def _wait_for_port(port: int, managed: Managed) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        if (code := managed.process.poll()) is not None:
            raise FederationError(
                f"{managed.name} ended at its start with status {code}: {managed.tail()}", f"see {managed.log}"
            )
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, port)) == 0:
                return
        time.sleep(0.05)
    raise FederationError(
        f"{managed.name} does not answer on port {port} after {START_TIMEOUT_S:g} s", f"see {managed.log}"
    )
