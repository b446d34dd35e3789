"""`fedmed serve`: take the port, fetch and verify the model, load it, then answer until SIGTERM or Ctrl-C.

    serve("fedmed@champion", open_registry("", Path("runs")), "127.0.0.1", 0, "auto")
    -> fedmed serve ready http://127.0.0.1:40123/v1 fedmed@champion fedmed:7

The port is taken first: a port in use is told at once, not after the model was loaded.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from aggregator.registry import Registry
from aggregator.serving.app import create_app
from aggregator.serving.engine import Engine
from fedmed.errors import ServingError


def serve(reference: str, registry: Registry, host: str, port: int, device: str) -> None:
    """Serve `reference` until a signal ends it; returns normally then.

    Args:
        reference: NAME@ALIAS or NAME:NUMBER, resolved once at the start.
        host, port: to listen on; port 0 takes a free one, told in the ready line.
        device: auto, cpu or cuda.

    Raises:
        RegistryError: no such version, or a file is not what its hash says.
        ServingError: the port is in use or the host is not this machine's.
    """
    with contextlib.closing(listen(host, port)) as listener, tempfile.TemporaryDirectory(prefix="fedmed-") as cache:
        version = registry.get(reference)
        folder = registry.fetch(version.reference, Path(cache) / "model")
        engine = Engine.load(folder, device)
        names = list(dict.fromkeys([reference, version.reference]))
        run_server(engine, names, listener)


def run_server(engine: Engine, names: list[str], listener: socket.socket) -> None:
    """Answer on a listening socket until SIGTERM or Ctrl-C."""
    url = _url(listener)
    if not _is_loopback(listener):
        print(f"warning: {url} is reachable from other machines and asks for no password", file=sys.stderr, flush=True)
    config = uvicorn.Config(create_app(engine, names), log_level="warning", access_log=False, lifespan="off")
    with _clean_exit():
        _Server(config, f"fedmed serve ready {url} {' '.join(names)}").run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ServingError: naming the port or the host that cannot be taken.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServingError(
                f"port {port} on {host} is in use", "choose another with --port; --port 0 takes a free one"
            ) from None
        raise ServingError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            "name an address of this machine, such as 127.0.0.1",
        ) from None


class _Server(uvicorn.Server):
    """Prints one line when requests are answered."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            print(self._ready, flush=True)


@contextlib.contextmanager
def _clean_exit() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when it is done; here that means: return, exit code 0."""
    old = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
