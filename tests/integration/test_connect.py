"""A site through `fedmed-site connect`, as real processes on loopback: it joins, a round passes, and whatever is killed or stopped
is seen by the consortium within ten seconds, and is back when it is started again."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from aggregator.runs.processes import Managed, ProcessGroup
from aggregator.superlink.flower_runs import submit
from aggregator.superlink.launcher import Superlink, flower_env, free_ports, start_superlink
from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from hospital_client.settings import load_site
from hospital_client.setup import create_site

SEEN_S = 10.0  # what the project promises
WAIT_S = 120.0  # for processes to start on a busy machine
WATCH = Path(__file__).parent / "watch-nodes"


class Place:
    """A SuperLink with a ServerApp that notes which nodes are online, and one site."""

    def __init__(self, root: Path, group: ProcessGroup) -> None:
        self.root, self.group = root, group
        self.ports = free_ports(2)
        self.site = root / "north"
        write_manifest(root / "data", phantom_examples(4, 0, domain="hospital", split="train"))
        create_site(self.site, {"name": "north", "cohort": "north", "data": str(root / "data"), "socket": "n.sock"}, {})
        self.socket = load_site(self.site).socket
        self.count = 0
        self.superlink = self.start_superlink()

    def start_superlink(self) -> Superlink:
        home = self.root / f"flower-{self.count}"
        return start_superlink(self.group, home, fleet_port=self.ports[0], control_port=self.ports[1])

    def start_watch(self) -> None:
        """The ServerApp writes a line to nodes.jsonl each time the set of online nodes changes."""
        self.count += 1
        submit(self.superlink.control, self.root, self.root / f"cli-{self.count}", bundle=WATCH)

    def start_daemon(self) -> Managed:
        command = [sys.executable, "-m", "fedmed.wire.fake_site", "north", str(self.socket), "--delay", "0"]
        daemon = self.group.start("daemon", command, dict(os.environ), essential=False)
        wait_for(self.socket.exists, "the daemon's socket")
        return daemon

    def start_connector(self) -> Managed:
        command = [sys.executable, "-m", "hospital_client.cli", "connect", str(self.site)]
        command += ["--superlink", self.superlink.fleet, "--insecure"]
        return self.group.start("connect", command, flower_env(self.root / "home"), essential=False)

    def seen(self) -> dict[str, object]:
        """The last line of nodes.jsonl: when, how many nodes are online, and what one answered."""
        path = self.root / "nodes.jsonl"
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        return json.loads(lines[-1]) if lines else {"online": -1, "answered": ""}

    def wait_online(self, count: int, limit_s: float) -> float:
        """Waits until so many nodes are seen online; returns the seconds that took."""
        begin = time.monotonic()
        wait_for(lambda: self.seen()["online"] == count, f"{count} nodes online", limit_s)
        return time.monotonic() - begin


def end_family(process: psutil.Process) -> None:
    """kill -9 to a process and whatever it started."""
    for item in [process, *process.children(recursive=True)]:
        item.kill()


def wait_for(done: Callable[[], bool], what: str, limit_s: float = WAIT_S) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, f"no {what} within {limit_s:g} s"
        time.sleep(0.05)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("c")
    with ProcessGroup(root / "logs") as group:
        yield Place(root, group)


def test_what_comes_and_goes_is_seen(place: Place):
    daemon, connector = place.start_daemon(), place.start_connector()
    place.start_watch()
    place.wait_online(1, WAIT_S)
    wait_for(lambda: place.seen()["answered"] == "site_info", "answer of the site")

    connector.process.kill()
    print("connector killed, seen after", place.wait_online(0, SEEN_S))

    connector = place.start_connector()
    place.wait_online(1, WAIT_S)
    connector.process.terminate()
    took = place.wait_online(0, SEEN_S)
    print("connector stopped, seen after", took)
    assert took < 5.0
    assert connector.process.wait(timeout=10) == 0

    connector = place.start_connector()
    place.wait_online(1, WAIT_S)
    daemon.process.kill()
    daemon.process.wait()
    print("daemon killed, seen after", place.wait_online(0, SEEN_S))
    place.start_daemon()
    place.wait_online(1, WAIT_S)

    log = connector.log.read_text()
    assert "offline: the site daemon does not answer" in log
    assert log.count("Traceback") == 0


def test_a_superlink_that_is_started_anew_has_its_site_back(place: Place):
    place.start_daemon()
    connector = place.start_connector()
    place.start_watch()
    place.wait_online(1, WAIT_S)
    (superlink,) = [item for item in psutil.Process().children() if "aggregator.superlink.main" in item.cmdline()]
    end_family(superlink)
    wait_for(lambda: "does not answer" in connector.log.read_text(), "line about the SuperLink")
    (place.root / "nodes.jsonl").unlink()
    place.superlink = place.start_superlink()
    place.start_watch()
    place.wait_online(1, WAIT_S)
    assert connector.process.poll() is None
    lines = [line for line in connector.log.read_text().splitlines() if " INFO " in line or " WARNING " in line]
    assert len(lines) <= 6, lines  # one line for each change, not for each try
