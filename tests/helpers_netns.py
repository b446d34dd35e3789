"""Two machines in one: network namespaces joined by a cable, for tests that need addresses which are not loopback."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

AGGREGATOR_NAME, AGGREGATOR_IP, HOSPITAL_IP = "aggregator.example.org", "10.77.0.1", "10.77.0.2"


@dataclass(frozen=True)
class Machines:
    """Names of the two namespaces."""

    aggregator: str
    hospital: str

    @staticmethod
    def inside(machine: str) -> list[str]:
        """What stands before a command that is to run there."""
        return ["ip", "netns", "exec", machine]


@contextmanager
def two_machines() -> Iterator[Machines]:
    """Made by root, taken down by name at the end; both know each other as AGGREGATOR_NAME and by address."""
    mark = secrets.token_hex(4)  # not the process' number: what a killed test left behind may have had the same one
    machines = Machines(f"fedmed-a-{mark}", f"fedmed-h-{mark}")
    ends = {machines.aggregator: (f"fma{mark}", AGGREGATOR_IP), machines.hospital: (f"fmh{mark}", HOSPITAL_IP)}
    try:
        for machine in ends:
            ip("netns", "add", machine)
            hosts = Path("/etc/netns") / machine / "hosts"  # bound over /etc/hosts inside
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n{AGGREGATOR_IP} {AGGREGATOR_NAME}\n")
        (one, two) = ends.items()
        ip("link", "add", one[1][0], "netns", one[0], "type", "veth", "peer", "name", two[1][0], "netns", two[0])
        for machine, (device, address) in ends.items():
            ip("-n", machine, "address", "add", f"{address}/24", "dev", device)
            ip("-n", machine, "link", "set", device, "up")
            ip("-n", machine, "link", "set", "lo", "up")
        yield machines
    finally:
        for machine in ends:
            subprocess.run(["ip", "netns", "delete", machine], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns") / machine, ignore_errors=True)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
