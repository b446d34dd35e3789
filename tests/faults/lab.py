"""Where faults are made: processes, disks and networks of one case's own, all taken away when the case ends.

    with Lab() as lab:
        disk = lab.tmpfs("disk", "200k")
        site = lab.site("north")                  # a folder, its data, its witness
        site.start()
        site.ask(task, payload)
        site.kill()

| made here          | taken away by                                                                          |
| ------------------ | -------------------------------------------------------------------------------------- |
| processes          | aggregator.runs.processes.ProcessGroup: SIGTERM, then SIGKILL, with all that they started   |
| mounts             | lazy umount, the last one first                                                        |
| network namespaces | `ip netns del`, by the names that were made here                                       |
| files              | the folder is removed                                                                  |
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aggregator.runs.processes import Managed, ProcessGroup

REPOSITORY = Path(__file__).parents[2]
WAIT_S = 300.0  # a machine that does other things at the same time
Done = subprocess.CompletedProcess[str]


def environment(**more: str) -> dict[str, str]:
    """This process's environment for one that is started: one thread each, this checkout's code."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **more}


def wait_for(done: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """What `done` returns once that is true. Raises AssertionError naming `what` when it never is."""
    end = time.monotonic() + timeout_s
    while not (found := done()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.02)
    return found


class Lab:
    """A context manager; use it from the main thread."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._netns = 0

    def __enter__(self) -> Lab:
        # Short, for unix sockets; open to other users, who must be able to reach a socket.
        self.root = Path(tempfile.mkdtemp(prefix="ff", dir="/tmp"))
        self.root.chmod(0o755)
        self._stack.callback(shutil.rmtree, self.root, ignore_errors=True)
        self.group = self._stack.enter_context(ProcessGroup(self.root / "logs"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def callback(self, function: Callable[..., object], *arguments: object) -> None:
        """Called at the end of the case, the last one first."""
        self._stack.callback(function, *arguments)

    def enter(self, manager: Any) -> Any:
        """A context that ends with the case."""
        return self._stack.enter_context(manager)

    def start(self, name: str, command: list[str], **env: str) -> Managed:
        """A process whose output is in logs/NAME.log."""
        return self.group.start(name, command, environment(**env), essential=False)

    def run(self, *command: str, timeout_s: float = WAIT_S, **env: str) -> Done:
        """A command that ends by itself."""
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=environment(**env), cwd=REPOSITORY
        )

    def fedmed(self, *arguments: str, timeout_s: float = WAIT_S) -> Done:
        """The consortium's command line."""
        return self.run(sys.executable, "-m", "aggregator.cli", *arguments, timeout_s=timeout_s)

    def fedmed_site(self, *arguments: str, timeout_s: float = WAIT_S) -> Done:
        """The hospital's command line."""
        return self.run(sys.executable, "-m", "hospital_client.cli", *arguments, timeout_s=timeout_s)

    def tmpfs(self, name: str, size: str) -> Path:
        """A small file system in memory: `size` as mount takes it, such as 64k."""
        return self._mount(name, "-t", "tmpfs", "-o", f"size={size}", "tmpfs")

    def ext4(self, name: str, megabytes: int) -> Path:
        """A small ext4 on a loop device: it can be frozen, which tmpfs cannot."""
        image = self.root / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        must(["mkfs.ext4", "-q", "-m", "0", str(image)])
        folder = self._mount(name, "-o", "loop,errors=remount-ro", str(image))
        self.callback(thaw, folder)
        return folder

    def namespace(self) -> str:
        """A network namespace with loopback alone; returns its name."""
        self._netns += 1
        name = f"{self.root.name}n{self._netns}"
        must(["ip", "netns", "add", name])
        self.callback(subprocess.run, ["ip", "netns", "del", name])
        must(["ip", "-n", name, "link", "set", "lo", "up"])
        return name

    def _mount(self, name: str, *arguments: str) -> Path:
        folder = self.root / name
        folder.mkdir()
        must(["mount", *arguments, str(folder)])
        self.callback(subprocess.run, ["umount", "--lazy", str(folder)])
        return folder


def must(command: list[str]) -> str:
    """What a system command prints. Raises AssertionError when it fails: a case that cannot run, fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"`{' '.join(command)}` failed: {done.stderr.strip()}"
    return done.stdout


def turn_read_only(folder: Path) -> None:
    """What the kernel does to an ext4 after a fault of its disk: read-only in the middle of whatever is written."""
    device = must(["findmnt", "-n", "-o", "SOURCE", str(folder)]).strip().removeprefix("/dev/")
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")


def turn_writable(folder: Path) -> None:
    """A person has looked at the disk: it is mounted anew. Nobody may have a file open there."""
    device = must(["findmnt", "-n", "-o", "SOURCE", str(folder)]).strip()
    image = must(["losetup", "-n", "-O", "BACK-FILE", device]).strip()
    must(["umount", str(folder)])
    subprocess.run(["fsck.ext4", "-p", image], capture_output=True)  # its status says what it mended
    must(["mount", "-o", "loop,errors=remount-ro", image, str(folder)])


def freeze(folder: Path) -> None:
    """From here on every write to this ext4 waits, until `thaw`."""
    must(["fsfreeze", "--freeze", str(folder)])


def thaw(folder: Path) -> None:
    """Lets writes go on; nothing happens where nothing was frozen."""
    subprocess.run(["fsfreeze", "--unfreeze", str(folder)], capture_output=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fills a file system up to its last byte, then gives `leave` bytes back; returns the file that does."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            size = file.tell()
        file.truncate(max(0, size - leave))
    return path


def json_lines(path: Path) -> list[Mapping[str, Any]]:
    """The whole lines of a file that another process may be writing; none while it is not there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def ends(managed: Managed, number: int = signal.SIGKILL, timeout_s: float = 60.0) -> int:
    """Sends a signal; returns the exit code."""
    managed.process.send_signal(number)
    return managed.process.wait(timeout_s)
