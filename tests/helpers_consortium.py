"""The machines of a consortium and a hospital, and what a test starts on them: commands by line, in their namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.helpers_netns import Machines

ROOT = Path(__file__).parents[1]
WAIT_S = 300.0  # a machine under load; nothing here waits for it
# Imports all that `fedmed-site connect` will, while it may read this checkout, and then is nobody: as in production.
AS_NOBODY = (
    "import os, sys, importlib, pkgutil, encodings.idna, hospital_client\n"
    "light = ['connect', 'connect_cli', 'connection', 'fleet', 'link', 'reach', 'audit', 'cli', 'settings', 'checks']\n"
    "[importlib.import_module(f'hospital_client.{name}') for name in light]\n"
    "os.setgroups([]); os.setgid(65534); os.setuid(65534); os.chdir('/')\n"
    "for path in sys.argv.pop(1).split(os.pathsep):\n"
    "    assert not os.access(path, os.R_OK) and not os.access(path, os.X_OK), path\n"
    "from hospital_client.cli import main; main()"
)


@dataclass
class World:
    """Both machines, where their paths lie here, and what was started."""

    machines: Machines
    root: Path
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    @property
    def consortium(self) -> Path:
        return self.root / "lib/consortium"

    @property
    def north(self) -> Path:
        return self.root / "srv/north"

    def here(self, line: str) -> str:
        """A line of the documentation with this test's paths in it."""
        line = line.partition(" #")[0].strip()
        for there, name in (("/var/lib/fedmed", "lib"), ("/srv/fedmed", "srv"), ("/run/fedmed", "run")):
            line = line.replace(there, str(self.root / name))
        return line

    def command(self, machine: str, line: str) -> list[str]:
        program, *arguments = line.split()
        modules = {"fedmed": "aggregator.cli", "fedmed-site": "hospital_client.cli"}
        return [*Machines.inside(machine), sys.executable, "-m", modules[program], *arguments]

    def run(self, machine: str, line: str, expected: int = 0) -> str:
        """What a command says, having ended as expected."""
        done = subprocess.run(
            self.command(machine, line),
            cwd=self.root / "desk",
            env=environment(),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        said = done.stdout + done.stderr
        assert done.returncode == expected, f"{line}: {done.returncode}: {said}"
        assert "Traceback" not in said
        return said

    def start(self, name: str, command: list[str]) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                command, cwd=self.root / "desk", env=environment(), stdout=log, stderr=log, start_new_session=True
            )

    def stop(self, name: str) -> None:
        process = self.started.pop(name)
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def said(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text()

    def wait_until(self, what: str, name: str, text: str) -> None:
        self.wait(lambda: text in self.said(name), f"{what}: {name} has not said {text!r}", name)

    def wait(self, done: Any, what: str, name: str) -> None:
        end = time.monotonic() + WAIT_S
        while not done():
            self.seen |= command_lines()
            assert time.monotonic() < end, f"{what}; its log:\n{self.said(name)}"
            assert name not in self.started or self.started[name].poll() is None or done(), f"{what}: {self.said(name)}"
            time.sleep(0.1)

    def connect(self) -> None:
        """`fedmed-site connect` as a user who can read nothing of the site's folder."""
        private = [
            self.north,
            self.north.with_name("north.witness"),
            self.north / "site.key",
            self.root / "srv/manifest",
        ]
        hidden = os.pathsep.join(map(str, private))
        command = [*Machines.inside(self.machines.hospital), sys.executable, "-c", AS_NOBODY, hidden]
        self.start("connect", [*command, "connect", f"{self.north}.connection"])


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def command_lines() -> set[str]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            found.add(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
