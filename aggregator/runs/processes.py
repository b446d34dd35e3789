"""Real processes with logs, each of which ends when the block that started it ends, with all that it started itself.

    with ProcessGroup(run_dir / "logs") as group:
        site = group.start("north", ["fedmed-site", "start", "sites/north"])
        group.check()                        # FederationError if one has died, with the end of its log
    # here nothing of the group runs any more, whether the block returned, raised, or was interrupted

| what happens                       | what is left running                                                  |
| ---------------------------------- | --------------------------------------------------------------------- |
| the block returns or raises        | nothing                                                               |
| Ctrl-C, or SIGTERM to this process | nothing; KeyboardInterrupt, or SystemExit(143), goes on to the caller |
| a started process dies by itself   | its own children until `check` or the block's end finds them          |
| SIGKILL to this process            | what it started: `end_leftovers` finds it by its mark and ends it     |

Grandchildren are known by their parent's id and by their session, both looked up while the parent lives: Flower's
SuperLink starts its executor in a session of its own, and an executor outlives a killed SuperLink for a while.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil

from fedmed.errors import FederationError

LOG_TAIL_LINES = 8
# How long the kernel may take to end a killed process.
KILL_S = 5.0
# In the environment of every process of a run, and so of all that those start: the run's folder.
MARK = "FEDMED_RUN_FOLDER"


@dataclass(frozen=True, slots=True)
class Managed:
    """One started process: its name for people, its handle, its log, and where in the log it began (in bytes)."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    log_begin: int = 0

    def require_running(self) -> None:
        """Raises FederationError, with the end of its log, when the process has ended."""
        if (code := self.process.poll()) is not None:
            raise FederationError(
                f"{self.name} ended with status {code}; its log ends: {self.tail()}", f"see {self.log}"
            )

    def tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of its log, joined to one line for an error message."""
        text = self.output()
        return " | ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip()) or "nothing"

    def output(self) -> str:
        """What this process has said so far, without what an earlier one of the same name did."""
        data = self.log.read_bytes()[self.log_begin :] if self.log.exists() else b""
        return data.decode("utf-8", errors="replace")


class ProcessGroup:
    """Starts processes and ends them. Use it as a context manager, from the main thread.

    Args:
        log_dir: one NAME.log per process, stdout and stderr together.
        grace_s: seconds between SIGTERM and SIGKILL.
        mark: of the run's folder; then `end_leftovers` can end what a killed owner of this group left.
    """

    def __init__(self, log_dir: Path, grace_s: float = 5.0, *, mark: Path | None = None) -> None:
        self._log_dir = log_dir
        self._grace_s = grace_s
        self._mark = {MARK: str(mark)} if mark else {}
        self._managed: list[Managed] = []
        self._optional: set[str] = set()
        self._stopped: set[str] = set()
        self._seen: dict[tuple[int, float], psutil.Process] = {}
        self._old_handler: Any = None

    def __enter__(self) -> ProcessGroup:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        if threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGTERM, _exit_on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        finally:
            if self._old_handler is not None:
                signal.signal(signal.SIGTERM, self._old_handler)

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None, *, essential: bool = True
    ) -> Managed:
        """Starts a process in a session of its own. Raises FederationError when the program is not there.

        Args:
            name: a process of the same name that has ended is forgotten: this one takes its place.
            essential: `check` raises when it dies. A hospital's processes are not: the federation goes on at quorum.
        """
        log = self._log_dir / f"{name}.log"
        env = {**(os.environ if env is None else env), **self._mark}
        with log.open("ab") as file:
            begin = file.tell()
            try:
                process = subprocess.Popen(
                    list(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, start_new_session=True
                )
            except OSError as error:
                raise FederationError(f"cannot start {name}: {command[0]}: {error.strerror}") from None
        managed = Managed(name, process, log, begin)
        self._look()  # of one that is forgotten here, what it started is still ended with the group
        self._managed = [item for item in self._managed if item.name != name or item.process.poll() is None]
        self._managed.append(managed)
        self._stopped.discard(name)
        if not essential:
            self._optional.add(name)
        return managed

    def check(self, names: Collection[str] = ()) -> None:
        """Notes what runs by now. Raises FederationError when a process has ended that nobody stopped.

        Args:
            names: of those that must be running, essential or not; empty means every essential one.
        """
        self._look()
        for item in self._managed:
            asked = item.name in names if names else item.name not in self._optional
            if asked and item.name not in self._stopped:
                item.require_running()

    def stop(self, managed: Managed) -> None:
        """Ends one process and its descendants; `check` does not miss it afterwards."""
        self._stopped.add(managed.name)
        _end(_family(managed.process), self._grace_s)
        managed.process.poll()

    def close(self) -> None:
        """Ends everything the group has started. May be called twice."""
        with _SignalsHeld():
            self._look()
            _end(self._seen.values(), self._grace_s)
            self._look()  # what a process started while it was being ended
            _end(self._seen.values(), 0.0)
            for item in self._managed:
                item.process.wait()

    def runs(self, name: str) -> bool:
        """Whether the process of this name was started and has not ended."""
        return any(item.name == name and item.process.poll() is None for item in self._managed)

    def running(self) -> list[str]:
        """Names of the programs that the group's processes and their descendants run at present."""
        self._look()
        return sorted(_program(process) for process in self._seen.values() if _alive(process))

    def _look(self) -> None:
        """Adds every descendant, and every member of a session that a known process leads, to the known processes."""
        for item in self._managed:
            for process in _family(item.process):
                self._seen.setdefault((process.pid, process.create_time()), process)
        # No stranger gets a pid while its session lives; where one got it, the session has ended and is left out.
        sessions = {
            pid for (pid, _), process in self._seen.items() if process.is_running() or not psutil.pid_exists(pid)
        }
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) in sessions:
                    self._seen.setdefault((process.pid, process.create_time()), process)
            except (OSError, psutil.Error):
                continue


def end_leftovers(mark: Path, grace_s: float = 10.0) -> list[str]:
    """Ends what a killed owner of a group with this mark has left running; returns the programs' names.

    Args:
        grace_s: seconds between SIGTERM and SIGKILL; a site's daemon needs up to 10 to end between two steps.
    """
    left = [process for process in psutil.process_iter() if process.pid != os.getpid() and _marked(process, mark)]
    names = sorted(_program(process) for process in left)
    _end(left, grace_s)
    return names


def _marked(process: psutil.Process, mark: Path) -> bool:
    try:
        return _alive(process) and process.environ().get(MARK) == str(mark)
    except psutil.Error:  # gone, or another user's
        return False


class _SignalsHeld:
    """Keeps a second Ctrl-C from cutting the clean-up short."""

    def __enter__(self) -> None:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        if self._main:
            for number, handler in self._old.items():
                signal.signal(number, handler)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The process, unless it has been waited for, and all its descendants."""
    if process.returncode is not None:
        return []
    try:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _end(processes: Iterable[psutil.Process], grace_s: float) -> None:
    """SIGTERM to each, then SIGKILL to those left; psutil checks that a pid is still the same process."""
    alive = [process for process in processes if _alive(process)]
    if grace_s > 0:
        _signal(alive, signal.SIGTERM)
        alive = _wait(alive, grace_s)
    _signal(alive, signal.SIGKILL)
    _wait(alive, KILL_S)


def _wait(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that still run after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while (processes := [process for process in processes if _alive(process)]) and time.monotonic() < end:
        time.sleep(0.05)
    return processes


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _program(process: psutil.Process) -> str:
    try:
        arguments = process.cmdline()
    except psutil.Error:
        return ""
    if arguments and Path(arguments[0]).name.startswith("python"):
        arguments = arguments[1:]
    if arguments[:1] == ["-m"]:  # a module, and what it was told to do: hospital_client.cli start
        return " ".join([arguments[1], *(word for word in arguments[2:3] if not word.startswith("-"))])
    return Path(arguments[0]).name if arguments else ""
