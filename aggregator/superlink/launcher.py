"""Flower's programs: their flags, ports and environment (flwr 1.39, gRPC fleet). What is run on them: flower_runs.py.

    with ProcessGroup(run_dir / "logs") as group:
        superlink = start_superlink(group, home)
        start_supernode(group, "north", superlink.fleet, socket_path, home)

Why each setting is there:

| setting                                    | reason                                                           |
| ------------------------------------------ | ---------------------------------------------------------------- |
| FLWR_TELEMETRY_ENABLED=0, no update check  | a hospital's network sends nothing that was not agreed upon      |
| aggregator.superlink.main                  | flower-superlink, where a node may be missed after 6 s           |
| --disable-runtime-dependency-installation  | SuperLink would run an installer for each run                    |
| FLWR_SUPEREXEC_TASK_POLL_INTERVAL          | the default of 1 s is waited for in every exchange at every node |
| FLWR_HOME per process, in the run's folder | bundles are unpacked there; nodes must not share it              |
| PATH begins with this interpreter's folder | SuperLink and SuperNode find their helpers by name               |
| no MLFLOW_TRACKING_*                       | the registry's credentials are the consortium's, not the sites'  |
| --insecure                                 | on loopback only; elsewhere it has to be asked for               |
| --ssl-*, --enable-supernode-auth           | together: a node is known by its key, and keys need TLS          |
| --host loopback, always                    | Flower's Control API has no login: who reaches it can admit keys |
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from aggregator.runs.processes import Managed, ProcessGroup
from fedmed.errors import FederationError

SUPERLINK = "superlink"
LOOPBACK = "127.0.0.1"
TASK_POLL_S = 0.25
START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of a SuperLink; with them, only nodes whose keys are registered may connect."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Superlink:
    """A running SuperLink: `fleet` is where SuperNodes connect (gRPC), `control` where runs are submitted."""

    fleet: str
    control: str


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


def without_credentials() -> dict[str, str]:
    """This process's environment as far as the federation's processes may see it: the registry's credentials are not theirs."""
    return {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING_")}


def flower_env(home: Path) -> dict[str, str]:
    """This process's environment with what every Flower program needs; `home` becomes its FLWR_HOME."""
    home.mkdir(parents=True, exist_ok=True)
    env = {key: value for key, value in without_credentials().items() if not key.startswith("FLWR_")}
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
    group: ProcessGroup,
    home: Path,
    *,
    fleet_port: int = 0,
    control_port: int = 0,
    database: Path | None = None,
    host: str = LOOPBACK,
    tls: Tls | None = None,
    insecure: bool = False,
    at: Superlink | None = None,
) -> Superlink:
    """Starts a SuperLink and waits until both its ports answer. Port 0 takes one that is free on loopback.

    Args:
        host: where the Fleet API listens; the Control API does on loopback alone.
        tls: None is plain text, and any node may join.
        insecure: allows plain text on an address that is not loopback.
        at: takes the ports of this one, which has ended.

    Raises:
        FederationError: a port is in use, plain text was not allowed, or the SuperLink died (with the end of its log) or
            does not answer.
    """
    if at is not None:
        fleet_port, control_port = (int(address.rpartition(":")[2]) for address in (at.fleet, at.control))
    free = free_ports(2)
    fleet_port, control_port = fleet_port or free[0], control_port or free[1]
    require_free(fleet_port, "the SuperLink's Fleet API", host)
    require_free(control_port, "the SuperLink's Control API")
    fleet = f"[{host}]:{fleet_port}" if ":" in host else f"{host}:{fleet_port}"
    if tls is None and not insecure:
        require_loopback(fleet)
    command = [sys.executable, "-m", "aggregator.superlink.main", "--disable-runtime-dependency-installation"]
    command += _server_tls_flags(tls)
    command += ["--fleet-api-type", "grpc-rere", "--fleet-api-address", fleet]
    command += ["--host", LOOPBACK, "--port", str(control_port)]
    command += ["--database", str(database)] if database else []
    managed = group.start(SUPERLINK, command, flower_env(home / "superlink"))
    _wait_for_port(fleet_port, managed, LOOPBACK if host in ("0.0.0.0", "::") else host)  # noqa: S104 compared, not bound
    _wait_for_port(control_port, managed)
    return Superlink(fleet, f"{LOOPBACK}:{control_port}")


def _server_tls_flags(tls: Tls | None) -> list[str]:
    if tls is None:
        return ["--insecure"]
    files = ["--ssl-ca-certfile", str(tls.ca), "--ssl-certfile", str(tls.certificate), "--ssl-keyfile", str(tls.key)]
    return [*files, "--enable-supernode-auth"]


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


def _tls_flags(address: str, root_certificates: Path | None) -> list[str]:
    if root_certificates is not None:
        return ["--root-certificates", str(root_certificates)]
    require_loopback(address)
    return ["--insecure"]


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is on this machine alone."""
    return address.rpartition(":")[0].strip("[]") in (LOOPBACK, "localhost", "::1")


def require_loopback(address: str) -> None:
    """Raises FederationError when plain text would leave this machine."""
    if not is_loopback(address):
        raise FederationError(
            f"{address} is not a loopback address, expected TLS for it", "give the root certificate of its SuperLink"
        )


def _wait_for_port(port: int, managed: Managed, host: str = LOOPBACK) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        if (code := managed.process.poll()) is not None:
            raise FederationError(
                f"{managed.name} ended at its start with status {code}: {managed.tail()}", f"see {managed.log}"
            )
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            if probe.connect_ex((host, port)) == 0:
                return
        time.sleep(0.05)
    raise FederationError(
        f"{managed.name} does not answer on port {port} after {START_TIMEOUT_S:g} s", f"see {managed.log}"
    )
