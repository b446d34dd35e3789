"""Hospitals that an administrator set up by hand: a site's folder and daemon, and the stock SuperNode that connects it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from aggregator.runs.processes import Managed, ProcessGroup
from aggregator.superlink.launcher import executable, flower_env, free_port

SITE = [sys.executable, "-m", "hospital_client.cli"]


def start_daemon(group: ProcessGroup, site: Path, data: Path) -> Managed:
    """`fedmed-site init` and `start`; the site has the folder's name, and its socket lies beside it."""
    made = [*SITE, "init", str(site), "--name", site.name, "--data", str(data), "--socket", str(socket_of(site))]
    subprocess.run(made, check=True, capture_output=True)
    return group.start(site.name, [*SITE, "start", str(site)])


def start_node(group: ProcessGroup, site: Path, fleet: str) -> Managed:
    """A SuperNode in plain text between the site's daemon and the SuperLink at `fleet`."""
    node = [executable("flower-supernode"), "--insecure", "--grpc-rere", "--superlink", fleet]
    node += ["--port", str(free_port()), "--node-config", f'site-socket="{socket_of(site)}"']
    return group.start(f"node-{site.name}", node, flower_env(site.parent / f"node-{site.name}"))


def start_link(group: ProcessGroup, home: Path, fleet: str, control: str) -> Managed:
    """A stock SuperLink in plain text."""
    link = [executable("flower-superlink"), "--insecure", "--fleet-api-type", "grpc-rere"]
    link += ["--fleet-api-address", fleet, "--port", control.rpartition(":")[2]]
    return group.start(home.name, link, flower_env(home))


def socket_of(site: Path) -> Path:
    return site.with_name(f"{site.name}.sock")
