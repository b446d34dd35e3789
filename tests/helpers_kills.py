"""A process killed at each of its calls that change a file. Import as `helpers_kills` (see tests/conftest.py).

The system outlives the process here, so fsync is only counted, and what it promises is kept by `Killer`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CALLS = ("open", "write", "fsync", "ftruncate", "replace", "mkdir", "unlink", "close")
# How a process ends, and at which calls: what the others leave behind is what one of these does.
KINDS = {"before": CALLS, "torn": ("write",), "power": ("write", "fsync", "ftruncate", "replace")}
KILLED = 9
Tell = Callable[[str], None]


class Killer:
    """Replaces the functions of `os`; the n-th call of those in KINDS is the process's last.

    before: the call is not made. torn: of a write the first half is made. power: the call is made; what was written to a
    file since its last fsync is lost, save for a part of it. `synced`: what is for good of each file that an earlier
    process left without fsync, by inode.
    """

    def __init__(self, number: int, kind: str, synced: dict[int, int]) -> None:
        self.left = number
        self.before = synced
        self.kind = kind
        self.real = {name: getattr(os, name) for name in CALLS}
        self.synced: dict[int, int] = {}
        for name in CALLS:
            setattr(os, name, self._wrapped(name))

    def _wrapped(self, name: str) -> Callable[..., object]:
        real = self.real[name]

        def call(*arguments: object, **options: object) -> object:
            self.left -= name in KINDS[self.kind]
            if self.left == 0:
                self._die(name, *arguments, **options)
            result = real(*arguments, **options)
            if name == "open":
                found = os.fstat(result)
                self.synced[result] = self.before.get(found.st_ino, found.st_size)
            if name == "fsync":
                self.synced[arguments[0]] = os.fstat(arguments[0]).st_size
            if name == "ftruncate":
                self.synced[arguments[0]] = min(self.synced[arguments[0]], arguments[1])
            return result

        return call

    def _die(self, name: str, *arguments: object, **options: object) -> None:
        if self.kind == "power":
            self.real[name](*arguments, **options)
        if self.kind == "torn":
            self.real[name](arguments[0], arguments[1][: len(arguments[1]) // 2])  # type: ignore[index]
        if self.kind == "power":
            self._lose()
        os._exit(KILLED)

    def _lose(self) -> None:
        for fd, size in self.synced.items():
            try:
                now = os.fstat(fd).st_size
                if now > size:
                    self.real["ftruncate"](fd, size + (now - size) // 3)
            except OSError:  # closed, or opened to read
                continue


@contextmanager
def child() -> Iterator[tuple[int, Tell, Callable[[], tuple[int, list[str]]]]]:
    """Forks. Yields 0 in the child and its `tell`; in the parent `wait`, which gives exit code and what was told."""
    reader, writer = os.pipe()
    pid = os.fork()
    real_write = os.write
    try:
        yield pid, lambda word: real_write(writer, f"{word}\n".encode()) and None, lambda: _wait(pid, reader, writer)
        if pid == 0:
            os._exit(0)
    except BaseException:
        if pid == 0:
            os._exit(1)
        raise


def _wait(pid: int, reader: int, writer: int) -> tuple[int, list[str]]:
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read().split()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def kill_everywhere(
    tmp_path: Path,
    prepare: Callable[[Path], dict[int, int] | None],
    run: Callable[[Path, Tell], None],
    check: Callable[[Path, list[str]], None],
) -> int:
    """Runs `run` in a fresh folder for every kind and number of call, then `check`. Returns how many calls there are.

    `prepare` fills the folder and may say what of its files is on disk for good, by inode; else all of it is.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        return _kill_everywhere(tmp_path, prepare, run, check)


def _kill_everywhere(
    tmp_path: Path,
    prepare: Callable[[Path], dict[int, int] | None],
    run: Callable[[Path, Tell], None],
    check: Callable[[Path, list[str]], None],
) -> int:
    calls = 0
    for kind in KINDS:
        for number in range(1, 1000):
            folder = tmp_path / f"{kind}-{number}"
            folder.mkdir()
            synced = prepare(folder) or {}
            with child() as (pid, tell, wait):
                if pid == 0:
                    Killer(number, kind, synced)
                    run(folder, tell)
                    os._exit(0)
                code, told = wait()
            assert code in (0, KILLED), (kind, number)
            check(folder, told)
            if code == 0:
                break
        assert number < 999
        calls = max(calls, number)
    return calls
