"""A consortium with a CA and a hospital that has joined it over TLS, all by the commands of docs/operations.md on this machine.

    made = Joined(lab)                      # SuperLink and site daemon run, the hospital's key is admitted
    made.check()                            # `fedmed-site check` of the connection
    made.connect()                          # starts `fedmed-site connect`

Sites reach the SuperLink at HOST, which is loopback and yet none of the names that every certificate holds.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

from aggregator.joining import provision
from aggregator.runs.processes import Managed
from aggregator.superlink.launcher import free_ports
from tests.faults.hospital import Hospital, make_hospital
from tests.faults.lab import Done, Lab, json_lines, must, wait_for

HOST = "127.0.0.2"


class Joined:
    """The consortium's folder is `root`; `site` is the hospital, its daemon the stand-in."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.root = lab, lab.root / "consortium"
        fleet, control = free_ports(2)
        self._ok(lab.fedmed("provision", "init", str(self.root), "--host", HOST, "--fleet-port", str(fleet)))
        command = [sys.executable, "-m", "aggregator.cli", "superlink", str(self.root), "--host", HOST]
        self.superlink = lab.start("superlink", [*command, "--control-port", str(control)])
        self.site = make_hospital(lab).start()
        self.join(self.site)
        self.says(self.superlink, "site north may join")

    def _ok(self, done: Done) -> None:
        assert done.returncode == 0, done.stderr

    def join(self, site: Hospital) -> None:
        """The hospital makes its key, the consortium admits it, the hospital takes its kit."""
        name = site.root.name
        self._ok(self.lab.fedmed_site("keygen", str(site.root)))
        first, newer = (connection(site) / public for public in ("node.pub", "next.pub"))
        public = newer if newer.exists() else first
        self._ok(self.lab.fedmed("provision", "site", str(self.root), name, "--public-key", str(public)))
        self._ok(self.lab.fedmed_site("join", str(self.root / "kits" / f"{name}.tar"), str(site.root)))

    @property
    def consortium(self) -> provision.Consortium:
        return provision.load(self.root)

    def check(self, site: Hospital | None = None, **env: str) -> Done:
        """What a hospital's person asks when it does not work."""
        folder = connection(site or self.site)
        return self.lab.run(sys.executable, "-m", "hospital_client.cli", "check", str(folder), **env)

    def connect(self, site: Hospital | None = None, **env: str) -> Managed:
        folder = connection(site or self.site)
        command = [sys.executable, "-m", "hospital_client.cli", "connect", str(folder)]
        return self.lab.start(f"connect-{folder.name}", command, PYTHONUNBUFFERED="1", **env)

    def says(self, process: Managed, words: str, times: int = 1) -> None:
        """Returns once the process has said so."""

        def look() -> bool:
            process.require_running()
            return process.log.read_text().count(words) >= times

        wait_for(look, f"{process.name} to say {words!r}", timeout_s=120)


def connection(site: Hospital) -> Path:
    return site.root.with_name(f"{site.root.name}.connection")


def audited(site: Hospital, decision: str) -> list[str]:
    """What the connection's audit.jsonl has of this decision."""
    lines: list[Any] = [*json_lines(connection(site) / "audit.jsonl")]
    return [line["message"] for line in lines if line["decision"] == decision]


class Clock:
    """The wrong clock of a machine: what is started with `env` reads it, and `set` is seen by whoever runs already."""

    def __init__(self, lab: Lab) -> None:
        self._offset, library = lab.root / "clock", lab.root / "clock.so"
        self.set(0)
        source = Path(__file__).with_name("clock.c")
        must(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)])
        self.env = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._offset)}

    def set(self, seconds: int) -> None:
        """So many seconds ahead of the true one, behind where negative."""
        with self._offset.open("r+b" if self._offset.exists() else "wb") as file:
            file.write(struct.pack("l", seconds))
