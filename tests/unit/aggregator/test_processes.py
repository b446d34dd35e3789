"""Nothing that a group started is left running, however its block ends, grandchildren in other sessions included."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from aggregator.runs.processes import MARK, ProcessGroup, end_leftovers
from aggregator.superlink.flower_runs import submit
from aggregator.superlink.launcher import (
    executable,
    free_port,
    free_ports,
    require_free,
    start_superlink,
    start_supernode,
)
from fedmed.errors import FederationError

# A process whose child runs in a session of its own and ignores SIGTERM, as a stuck executor would.
NESTED = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c',
    'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)'], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
OUTER = """
import sys, time
from pathlib import Path
from aggregator.runs.processes import ProcessGroup
with ProcessGroup(Path(sys.argv[1]), grace_s=0.5) as group:
    nested = group.start('nested', [sys.executable, '-c', sys.argv[2]])
    while not nested.log.read_text().strip():
        time.sleep(0.05)
    print(nested.process.pid, nested.log.read_text().strip(), flush=True)
    time.sleep(600)
"""


def wait_for(path) -> str:
    end = time.monotonic() + 20.0
    while time.monotonic() < end:
        if path.exists() and path.read_text().strip():
            return path.read_text().strip()
        time.sleep(0.05)
    raise AssertionError(f"{path} stays empty")


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_nested(group: ProcessGroup) -> list[int]:
    managed = group.start("nested", [sys.executable, "-c", NESTED])
    return [managed.process.pid, int(wait_for(managed.log))]


def test_the_end_of_the_block_ends_all(tmp_path):
    with ProcessGroup(tmp_path, grace_s=0.5) as group:
        pids = start_nested(group)
        assert all(running(pid) for pid in pids)
    assert not any(running(pid) for pid in pids)


def test_an_exception_ends_all_and_goes_on(tmp_path):
    pids: list[int] = []

    def fail() -> None:
        with ProcessGroup(tmp_path, grace_s=0.5) as group:
            pids.extend(start_nested(group))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert pids
    assert not any(running(pid) for pid in pids)


def test_a_grandchild_outlives_its_killed_parent_only_until_the_end(tmp_path):
    with ProcessGroup(tmp_path, grace_s=0.5) as group:
        parent, child = start_nested(group)
        group.check()
        psutil.Process(parent).kill()
        time.sleep(0.2)
        assert running(child)
    assert not running(child)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_signal_ends_all(tmp_path, number, status):
    command = [sys.executable, "-c", OUTER, str(tmp_path / "logs"), NESTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as outer:
        pids = [int(word) for word in outer.stdout.readline().split()]
        assert len(pids) == 2
        outer.send_signal(number)
        assert outer.wait(20) == status
    assert not any(running(pid) for pid in pids)


def test_one_process_can_be_stopped_alone(tmp_path):
    with ProcessGroup(tmp_path, grace_s=0.5) as group:
        stays = group.start("stays", [sys.executable, "-c", "import time; time.sleep(600)"])
        goes = group.start("goes", [sys.executable, "-c", "import time; time.sleep(600)"])
        group.stop(goes)
        assert goes.process.poll() is not None
        assert stays.process.poll() is None
        group.check()


def test_a_death_is_reported_with_the_end_of_its_log(tmp_path):
    with ProcessGroup(tmp_path) as group:
        managed = group.start("short", [sys.executable, "-c", "print('no room on the disk'); raise SystemExit(3)"])
        managed.process.wait(20)
        with pytest.raises(FederationError, match=r"short ended with status 3.*no room on the disk"):
            group.check()
        group.check(["another"])


def test_a_site_may_go_unless_it_is_asked_for(tmp_path):
    with ProcessGroup(tmp_path) as group:
        site = group.start("site", [sys.executable, "-c", "raise SystemExit(1)"], essential=False)
        site.process.wait(20)
        group.check()
        with pytest.raises(FederationError, match="site ended with status 1"):
            group.check(["site"])


def test_leftovers_of_a_killed_owner_are_ended_and_named(tmp_path):
    command = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"]
    left = subprocess.Popen(command, env={**os.environ, MARK: str(tmp_path)}, stderr=subprocess.DEVNULL)
    assert end_leftovers(tmp_path) == ["http.server 0"]
    assert left.wait(5) < 0
    assert end_leftovers(tmp_path) == []


def test_a_program_that_is_not_there(tmp_path):
    with ProcessGroup(tmp_path) as group, pytest.raises(FederationError, match="cannot start x"):
        group.start("x", [str(tmp_path / "none")])
    with pytest.raises(FederationError, match="is not installed"):
        executable("no-such-program")


def test_ports():
    ports = free_ports(5)
    assert len(set(ports)) == 5
    require_free(free_port(), "a test")


def test_a_port_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, ProcessGroup(tmp_path / "logs") as group:
        port = taken.getsockname()[1]
        with pytest.raises(FederationError, match=rf"port {port} on 127\.0\.0\.1 is in use"):
            start_superlink(group, tmp_path / "flower", fleet_port=port)


def test_insecure_is_for_loopback_only(tmp_path):
    with ProcessGroup(tmp_path / "logs") as group:
        with pytest.raises(FederationError, match="expected TLS"):
            start_supernode(group, "n", "10.1.2.3:9092", tmp_path / "s.sock", tmp_path / "flower")
        with pytest.raises(FederationError, match="expected TLS"):
            submit("fedmed.example:8000", tmp_path, tmp_path / "flower")


def test_submitting_where_nobody_listens(tmp_path):
    with pytest.raises(FederationError, match="`flwr run` failed"):
        submit(f"127.0.0.1:{free_port()}", tmp_path, tmp_path / "flower")
