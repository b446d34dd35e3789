"""A stream proxy in this process that behaves as a bad network does: TCP or unix socket in, TCP or unix socket out.

    with Proxy("127.0.0.1:9092") as proxy:          # SuperNodes are given proxy.address
        proxy.delay_s = 0.2
        proxy.hold()                                # a partition: connections stay, nothing arrives
        proxy.release()                             # ... and now all of it does
        proxy.cut()                                 # every connection is reset, new ones are too
        proxy.open()

Bytes go `up` from who connected to the target, and `down` back. Faults of bytes are made once, at a place in all that has
passed in that direction since they were asked for.

| fault                 | what the two ends see                                                        |
| --------------------- | ---------------------------------------------------------------------------- |
| delay_s               | each piece of at most 64 KiB arrives so much later                           |
| bytes_per_s           | no more than that in a second and direction, over all connections            |
| hold, release         | silence; connections are still accepted; nothing is lost                     |
| cut, open             | connection reset; new connections are reset until `open`                     |
| flip(after)           | one bit of the byte after `after` others is changed                          |
| truncate(after)       | `after` bytes arrive, then the stream ends as if the peer had closed it      |
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from types import TracebackType

PIECE = 1 << 16
TICK_S = 0.02
DIRECTIONS = ("up", "down")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


class _Truncated(Exception):
    pass


class Proxy:
    """Listens from the first moment on. `address` is where to connect: `127.0.0.1:PORT` or `unix:PATH`."""

    def __init__(self, target: str, listen: str = "127.0.0.1:0") -> None:
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self.passed = dict.fromkeys(DIRECTIONS, 0)
        self._target = target
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._waiting: dict[socket.socket, int] = {}
        self._refusing = self._closed = False
        self._faults: dict[str, tuple[str, int]] = {}
        self._sockets: list[socket.socket] = []
        self._server = _listen(listen)
        self.address = listen if listen.startswith("unix:") else f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._server.close()
        self.cut()
        if self.address.startswith("unix:"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.address.removeprefix("unix:"))

    def hold(self, *directions: str) -> None:
        """Nothing arrives any more in these directions; without any, in both."""
        self._held |= set(directions or DIRECTIONS)

    def release(self) -> None:
        self._held.clear()

    def cut(self) -> None:
        """Resets every connection, and new ones until `open`."""
        self._refusing = True
        with self._lock:
            for item in self._sockets:
                _reset(item)
            self._sockets.clear()

    def open(self) -> None:
        self._refusing = False

    def flip(self, after: int, direction: str = "up") -> None:
        """Changes a bit, once."""
        self._faults[direction] = ("flip", self.passed[direction] + after)

    def truncate(self, after: int, direction: str = "up") -> None:
        """Ends the connection that carries the byte after `after` others, before that byte, once."""
        self._faults[direction] = ("truncate", self.passed[direction] + after)

    @property
    def held_bytes(self) -> int:
        """Bytes that have arrived here and not gone on."""
        return sum(self._waiting.copy().values())

    @property
    def done(self) -> bool:
        """Whether the faults of bytes that were asked for have been made."""
        return not self._faults

    def _accept(self) -> None:
        while not self._closed:
            try:
                near = self._server.accept()[0]
                if self._refusing:
                    _reset(near)
                    continue
                far = _connect(self._target)
            except OSError:
                if not self._closed and "near" in locals():
                    _reset(near)  # nobody listens at the target
                continue
            with self._lock:
                self._sockets += [near, far]
            for source, sink, direction in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        """From one end to the other until the stream ends; what breaks one way ends both ways at both ends."""
        ends = {source: socket.SHUT_RDWR, sink: socket.SHUT_RDWR}
        try:
            self._carry(source, sink, direction)
            ends = {sink: socket.SHUT_WR}
        except _Truncated:
            ends[sink] = socket.SHUT_WR  # what was let through is to arrive
        except (OSError, ValueError):  # reset by either end, or closed by `cut`
            pass
        for item, how in ends.items():
            with contextlib.suppress(OSError):
                item.shutdown(how)

    def _carry(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        waiting, ended = b"", False
        while not ended or waiting:
            held = direction in self._held
            if waiting and not held:
                self._forward(waiting, sink, direction)
                waiting = b""
            if not ended and select.select([source], [], [], TICK_S)[0]:
                piece = source.recv(PIECE)
                waiting, ended = waiting + piece, not piece
            elif held:
                time.sleep(TICK_S)
            self._waiting[source] = len(waiting)

    def _forward(self, data: bytes, sink: socket.socket, direction: str) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        with self._lock:
            start = self.passed[direction]
            self.passed[direction] += len(data)
            kind, place = self._faults.get(direction, ("", -1))
            at = place - start
            if hit := 0 <= at < len(data):
                del self._faults[direction]
        if self.bytes_per_s:
            time.sleep(len(data) / self.bytes_per_s)
        if hit and kind == "truncate":
            sink.sendall(data[:at])
            raise _Truncated
        if hit:
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        sink.sendall(data)


def _listen(address: str) -> socket.socket:
    if address.startswith("unix:"):
        server = socket.socket(socket.AF_UNIX)
        server.bind(address.removeprefix("unix:"))
        server.listen()
        return server
    host, _, port = address.rpartition(":")
    return socket.create_server((host, int(port)))


def _connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        made = socket.socket(socket.AF_UNIX)
        made.connect(address.removeprefix("unix:"))
        return made
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


def _reset(item: socket.socket) -> None:
    """Ends a connection without a goodbye; `shutdown` wakes whoever waits for it in another thread."""
    with contextlib.suppress(OSError):
        item.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if item.family == socket.AF_UNIX:
            item.shutdown(socket.SHUT_RDWR)
    item.close()
