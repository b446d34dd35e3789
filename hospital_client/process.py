"""What makes the daemon the only one of its folder: lock, socket path, log file.

with only_daemon(folder / "daemon.lock"), log_to(folder / "daemon.log"):
    path = claim_socket(folder / "site.sock")
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket as sockets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmed.errors import FederationError
from fedmed.wire.channel import check_socket_path
from hospital_client.site import log


def claim_socket(socket: Path) -> str:
    """The socket's absolute path, free to bind: a stale file is removed, a live one is left alone.

    Raises:
        FederationError: the path is too long, somebody listens there, or it is not a socket.
    """
    path = check_socket_path(socket)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not os.path.lexists(path):
            return path
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FederationError(f"{path} is there and is not a socket", "set another `socket` in site.yaml")
        if _somebody_listens(path):
            raise FederationError(
                f"another process listens on the socket {path}", "stop it, or set another `socket` in site.yaml"
            )
        os.unlink(path)
    except OSError as error:
        raise FederationError(
            f"the socket {path} cannot be made: {error.strerror}", "set another `socket` in site.yaml"
        ) from None
    return path


def _somebody_listens(path: str) -> bool:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True


@contextmanager
def only_daemon(path: Path) -> Iterator[None]:
    """Holds the folder's lock, which the kernel gives back however the process ends."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.read(fd, 32).decode(errors="replace").strip()
        os.close(fd)
        raise FederationError(
            f"another daemon (process {pid}) runs on this folder", f"stop it first: kill {pid}"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Plain lines to stderr and daemon.log."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    file = logging.FileHandler(
        path, encoding="utf-8", errors="backslashreplace"
    )  # a message may quote half a surrogate pair
    handlers: list[logging.Handler] = [logging.StreamHandler(), file]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
    level, propagates = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.setLevel(level)
        log.propagate = propagates
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
