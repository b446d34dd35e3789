"""`fedmed superlink DIR`: a consortium's SuperLink, over TLS, for the sites of its register and nobody else.

    run_superlink(Path("consortium"), Listen(host="0.0.0.0"), print)      # until SIGTERM or Ctrl-C

| what happens                            | what comes of it                                                            |
| --------------------------------------- | --------------------------------------------------------------------------- |
| a site is admitted or revoked meanwhile | done within a second of the register's change; no restart, no lost round    |
| the certificate is renewed meanwhile    | shown from the next connection on (hooks.py)                                |
| the certificate ends within 30 days     | said at the start and once a day; in every round by the server app          |
| the register cannot be trusted          | at the start: AdmissionError. Later: said, and nobody is admitted or removed |
| this process is killed                  | its SuperLink ends within seconds: nobody else would take revoked keys out   |
| the SuperLink dies                      | FederationError with the end of its log: systemd starts it again            |
| not loopback, without certificates      | FederationError, unless --insecure: then said at the start and every round  |
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aggregator.joining import admission, admitted, provision
from aggregator.runs.processes import ProcessGroup
from aggregator.superlink.gate import GATE_KEY
from aggregator.superlink.launcher import LOOPBACK, Superlink, Tls, is_loopback, start_superlink
from fedmed.errors import FedMedError

LOOK_S = 0.5
# Besides changes of the register: a node that somebody took out by hand, and, often, whether a site's newer key was seen.
APPLY_S, RENEWING_S = 30.0, 2.0
WARN_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the SuperLink listens: the Fleet API on `host`, the Control API on loopback. Port 0 of fleet: the consortium's."""

    host: str = LOOPBACK
    fleet_port: int = 0
    control_port: int = 9093
    database: Path | None = None
    insecure: bool = False


def run_superlink(root: Path, listen: Listen, say: Callable[[str], object]) -> None:
    """Runs until SIGTERM, Ctrl-C, or the SuperLink's end.

    Args:
        root: the consortium's folder; with `insecure` any folder, for logs.
        say: takes one line for people at a time.

    Raises:
        AdmissionError: not a consortium's folder, or its register cannot be trusted.
        FederationError: a port is taken, or the SuperLink ended.
    """
    consortium = None if listen.insecure else provision.load(root)
    tls = Tls(consortium.ca, consortium.certificate, consortium.key) if consortium else None
    fleet_port = listen.fleet_port or (consortium.settings.fleet_port if consortium else provision.FLEET_PORT)
    _tell_the_server_app(consortium, f"{listen.host}:{fleet_port}")
    for line in admitted.standing_warnings():
        say(f"warning: {line}")
    with ProcessGroup(root / "logs") as group:
        superlink = start_superlink(
            group,
            root / "flower",
            fleet_port=fleet_port,
            control_port=listen.control_port,
            database=listen.database,
            host=listen.host,
            tls=tls,
            insecure=listen.insecure,
        )
        say(f"SuperLink ready: sites connect to {superlink.fleet}, runs are submitted to {superlink.control}")
        if consortium:
            _Gate(consortium, superlink, say).keep(group)
        while True:
            group.check()
            time.sleep(LOOK_S)


def _tell_the_server_app(consortium: provision.Consortium | None, fleet: str) -> None:
    """By environment: the SuperLink starts the server app, which must know whom it can believe."""
    for key in (admitted.FOLDER_KEY, admitted.EXPOSED_KEY, GATE_KEY):
        os.environ.pop(key, None)
    if consortium is not None:
        (consortium.root / admitted.NODES).unlink(missing_ok=True)
        os.environ[admitted.FOLDER_KEY] = str(consortium.root.resolve())
        os.environ[GATE_KEY] = str(os.getpid())
    elif not is_loopback(fleet):
        os.environ[admitted.EXPOSED_KEY] = fleet


class _Gate:
    """Keeps the SuperLink's nodes those of the register."""

    def __init__(self, consortium: provision.Consortium, superlink: Superlink, say: Callable[[str], object]) -> None:
        self._consortium, self._say = consortium, say
        self._nodes = admission.ControlNodes(superlink.control, consortium.ca.read_bytes())
        self._seen: tuple[int, int] | None = None
        self._said = ""
        self._pause_s = APPLY_S
        self._apply()

    def keep(self, group: ProcessGroup) -> None:
        """Returns only by an exception: FederationError when the SuperLink has ended."""
        applied = warned = time.monotonic()
        while True:
            group.check()
            if self._stamp() != self._seen or time.monotonic() - applied > self._pause_s:
                applied = time.monotonic()
                try:
                    self._apply()
                except FedMedError as error:
                    group.check()
                    self._seen = self._stamp()
                    self._say_once(f"warning: nobody is admitted or removed at present: {error.message}")
            if time.monotonic() - warned > WARN_S:
                warned = time.monotonic()
                for line in admitted.standing_warnings():
                    self._say(f"warning: {line}")
            time.sleep(LOOK_S)

    def _apply(self) -> None:
        self._seen = self._stamp()  # before: a change while it works is looked at again
        changes = admission.apply(self._consortium, self._nodes)
        self._pause_s = RENEWING_S if changes.renewing else APPLY_S
        for site in changes.admitted:
            self._say(f"site {site} may join")
        for site in changes.ended:
            self._say(f"a key of site {site} may not join any more")
        self._said = ""

    def _say_once(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self._say(line)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._consortium.register.path)
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size
