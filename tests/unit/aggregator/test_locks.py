"""One worker on a folder: named while it lives, and no trace of it once it has been killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator.runs.locks import COMMAND_LOCK, hold, holder
from aggregator.runs.prepare import new_run_folder
from aggregator.runs.processes import ProcessGroup, end_leftovers
from aggregator.runs.sockets import socket_folder
from fedmed.config import load_experiment
from fedmed.errors import FederationError

HOLD = (
    "import sys, time; from pathlib import Path; from aggregator.runs.locks import hold\n"
    "with hold(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(600)"
)


def start_holder(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def test_the_second_is_told_who_is_first(tmp_path: Path) -> None:
    path = tmp_path / COMMAND_LOCK
    assert holder(path) is None
    process = start_holder(path)
    try:
        assert holder(path) == process.pid
        with (
            pytest.raises(FederationError, match=rf"another command \(process {process.pid}\) works on") as error,
            hold(path, "another command", wait_s=0.1),
        ):
            pass
        assert f"kill {process.pid}" in error.value.hint
    finally:
        process.kill()
        process.wait()
    with hold(path, "another command", wait_s=0.1):
        assert holder(path) == os.getpid()
    assert holder(path) is None


def test_a_disk_that_does_not_take_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(FederationError, match="cannot be opened: No such file"), hold(tmp_path / "no" / "lock", "x"):
        pass
    monkeypatch.setattr(os, "pwrite", full)
    with (
        pytest.raises(FederationError, match="lock cannot be written: No space left") as error,
        hold(tmp_path / "lock", "x"),
    ):
        pass
    assert error.value.hint == "make room or mend the disk"
    monkeypatch.undo()
    with hold(tmp_path / "lock", "x"):  # the failed one has let go of it
        pass


def test_it_is_waited_for(tmp_path: Path) -> None:
    process = start_holder(tmp_path / "lock")
    process.kill()
    with hold(tmp_path / "lock", "another command", wait_s=10.0):
        pass
    process.wait()


def test_a_folder_in_use_is_not_moved_aside(tmp_path: Path) -> None:
    experiment = load_experiment("demo")
    folder = new_run_folder(experiment, tmp_path)
    with hold(folder / COMMAND_LOCK, "x"), pytest.raises(FederationError, match="works on"):
        new_run_folder(experiment, tmp_path)
    new_run_folder(experiment, tmp_path)
    assert (tmp_path / f"{experiment.name}.1").is_dir()


def test_what_a_killed_owner_left_is_found_by_its_mark_and_ended(tmp_path: Path) -> None:
    group = ProcessGroup(tmp_path, mark=tmp_path)
    mine = group.start("mine", [sys.executable, "-c", "import time; time.sleep(600)"])
    other = ProcessGroup(tmp_path, mark=tmp_path / "other")
    others = other.start("others", [sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert len(end_leftovers(tmp_path)) == 1
        mine.process.wait(timeout=10)
        assert others.process.poll() is None
        assert end_leftovers(tmp_path) == []
    finally:
        group.close()
        other.close()


def test_one_that_takes_anothers_name_has_its_own_output(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        first = group.start("x", [sys.executable, "-c", "print('first')"])
        first.process.wait()
        with pytest.raises(FederationError, match="x ended with status 0"):
            group.check()
        second = group.start("x", [sys.executable, "-c", "print('second', flush=True); import time; time.sleep(600)"])
        group.check()
        assert group.runs("x") and "first" not in second.output() and "first" in first.output()


def test_sockets_are_at_the_same_short_place_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with socket_folder(tmp_path / "runs" / "demo") as first:
        assert first.stat().st_mode & 0o777 == 0o700
        (first / "left.sock").touch()
        with socket_folder(tmp_path / "runs" / "demo") as again:  # after a kill -9 it is still there
            assert again == first and len(str(first.name)) < 20
    assert not first.exists()
    first.mkdir(mode=0o755)
    with pytest.raises(FederationError, match="mode 0700"), socket_folder(tmp_path / "runs" / "demo"):
        pass
    first.rmdir()
    first.symlink_to(tmp_path)
    with pytest.raises(FederationError, match="mode 0700"), socket_folder(tmp_path / "runs" / "demo"):
        pass
