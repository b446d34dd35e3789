"""The client side of the site daemon's unix socket: a frame in, a frame out. Knows no torch; the relay lives by it.

    frame -> pieces of 1 MiB -> unix socket -> daemon -> pieces -> frame

    >>> reply = handle("/run/fedmed/north.sock", encode(DescribeTask(run="r1")), timeout_s=60.0)   # doctest: +SKIP

| what happens                                   | what the caller sees                                  |
| ---------------------------------------------- | ----------------------------------------------------- |
| no socket, or nobody listens                   | FederationError: daemon not running, and what to do   |
| no permission on the socket                    | FederationError naming the socket's mode key          |
| no answer in `timeout_s`                       | FederationError; the daemon goes on and keeps the result |
| frame above MAX_FRAME_BYTES, either direction  | WireError with both sizes                             |
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import grpc

from fedmed.errors import FederationError, FedMedError, WireError
from fedmed.wire import site_pb2, site_pb2_grpc

CHUNK_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 30
# The kernel holds 107 bytes of a unix socket's path; some systems hold fewer.
MAX_SOCKET_PATH_BYTES = 100
# A pool of its own: a daemon that was down a moment ago must not be held back by another channel's backoff.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


def handle(socket_path: str | Path, frame: bytes, timeout_s: float) -> bytes:
    """Hands one frame to the daemon and returns its answer frame.

    Args:
        socket_path: the daemon's unix socket, as `fedmed-site start` prints it.
        frame: of fedmed.messages, at most 1 GiB; it is passed through unread, and once it is sent this holds it no more.
        timeout_s: for the whole exchange, training included.

    Raises:
        FederationError: the daemon is not running, may not be called, or did not answer in time.
        WireError: a frame is larger than MAX_FRAME_BYTES.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise _oversize(len(frame))
    pieces = chunks(frame)
    del frame
    with _service(socket_path, timeout_s) as service:
        return join(piece.data for piece in service.Handle(pieces, timeout=timeout_s))


def status(socket_path: str | Path, timeout_s: float = 5.0) -> site_pb2.StatusReply:
    """The daemon's state. Raises FederationError as `handle` does."""
    with _service(socket_path, timeout_s) as service:
        reply: site_pb2.StatusReply = service.Status(site_pb2.StatusRequest(), timeout=timeout_s)
        return reply


def chunks(frame: bytes) -> Iterator[site_pb2.Chunk]:
    """The frame as messages of at most CHUNK_BYTES; an empty frame is one empty message."""
    view = memoryview(frame)
    for start in range(0, max(len(frame), 1), CHUNK_BYTES):
        yield site_pb2.Chunk(data=bytes(view[start : start + CHUNK_BYTES]))


def join(pieces: Iterable[bytes]) -> bytes:
    """The frame that `pieces` make, in memory once. Raises WireError as soon as they exceed MAX_FRAME_BYTES."""
    frame = BytesIO()
    for piece in pieces:
        if (total := frame.tell() + len(piece)) > MAX_FRAME_BYTES:
            raise _oversize(total)
        frame.write(piece)
    return frame.getvalue()  # the buffer itself, not a copy


def check_socket_path(socket_path: str | Path) -> str:
    """The absolute path, if it fits a unix socket's address. Raises FederationError if it does not."""
    path = os.path.abspath(socket_path)
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise FederationError(
            f"the socket path has {size} bytes, expected at most {MAX_SOCKET_PATH_BYTES}: {path}",
            "set `socket` in site.yaml to a shorter path, for example /run/fedmed/NAME.sock",
        )
    return path


@contextmanager
def _service(socket_path: str | Path, timeout_s: float) -> Iterator[site_pb2_grpc.SiteStub]:
    path = check_socket_path(socket_path)
    with grpc.insecure_channel(f"unix:{path}", options=_OPTIONS) as channel:
        try:
            yield site_pb2_grpc.SiteStub(channel)
        except grpc.RpcError as error:
            raise _explain(error, path, timeout_s) from None


def _explain(error: grpc.RpcError, path: str, timeout_s: float) -> FedMedError:
    """gRPC's status as an error of ours, with what a person can do about it."""
    code = error.code()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return FederationError(
            f"the site daemon at {path} did not answer within {timeout_s:g} s",
            "send the same task again: a finished result is kept and not trained twice",
        )
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return WireError(f"the site daemon refuses the frame: {error.details()}")
    if code == grpc.StatusCode.UNAVAILABLE and os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
        return FederationError(
            f"user {os.geteuid()} may not use the socket {path}",
            "set `socket_mode` in site.yaml and give this user the socket's group",
        )
    if code == grpc.StatusCode.UNAVAILABLE:
        return FederationError(
            f"the site daemon is not running: nobody listens on {path}",
            "start it with `fedmed-site start DIR`; its daemon.log says why it ended",
        )
    return FederationError(f"the site daemon at {path} broke off: {code.name}", "see daemon.log in the site's folder")


def _oversize(size: int) -> WireError:
    return WireError(
        f"a frame of {size} bytes is larger than the limit of {MAX_FRAME_BYTES} bytes",
        "lower lora.rank, lora.parts or use federation.wire_dtype=bfloat16",
    )
