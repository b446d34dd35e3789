"""A consortium's SuperLink does not outlive the process that takes revoked keys out of it."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

LINK = "import time; from aggregator.superlink.gate import end_with_gate; end_with_gate(); print('up', flush=True); time.sleep(60)"
GATE = (
    "import os, subprocess, sys; from aggregator.superlink.gate import GATE_KEY\n"
    "os.environ[GATE_KEY] = str(os.getpid())\n"
    f"child = subprocess.Popen([sys.executable, '-c', {LINK!r}], stdout=subprocess.PIPE, start_new_session=True)\n"
    "print(child.pid, child.stdout.readline(), flush=True); child.wait()"
)


def test_a_superlink_ends_when_its_gate_is_killed() -> None:
    gate = subprocess.Popen([sys.executable, "-c", GATE], stdout=subprocess.PIPE, text=True)
    assert gate.stdout is not None
    link = psutil.Process(int(gate.stdout.readline().split()[0]))
    time.sleep(1.5)
    assert link.is_running()
    gate.kill()
    gate.wait()
    link.wait(10)


def test_a_superlink_of_its_own_is_not_watched() -> None:
    link = subprocess.Popen([sys.executable, "-c", LINK], stdout=subprocess.PIPE)
    assert link.stdout is not None and link.stdout.readline() == b"up\n"
    time.sleep(1.5)
    assert link.poll() is None
    link.kill()
    link.wait()
