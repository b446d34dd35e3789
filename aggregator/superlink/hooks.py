"""What FedMed adds to Flower's SuperLink in its own process: certificates taken up while it runs, and the greeting.

    install(sys.argv[1:]) before flower_superlink() -> the same SuperLink, and

| added                                 | how                                                                                 |
| ------------------------------------- | ----------------------------------------------------------------------------------- |
| a renewed certificate, Fleet API      | gRPC asks for the certificate before each handshake (dynamic_ssl_server_credentials) |
| a renewed certificate, Control API    | uvicorn's SSL context is loaded again, looked at every RELOAD_S                      |
| fedmed.Greeting (fedmed/wire)         | one more handler on the Fleet API's port                                             |
| no token on a command line            | its executor is started as aggregator.superlink.superexec                                |

Open connections stay as they are, so a renewal ends no call and loses no round. Two files that do not belong together, as in the
moment between writing one and the other, are left alone until they do.
"""

from __future__ import annotations

import importlib
import itertools
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import uvicorn.config

from aggregator.joining.certificates import belongs
from fedmed.errors import FederationError
from fedmed.wire import greeting

RELOAD_S = 2.0
_CERTIFICATE, _KEY = "--ssl-certfile", "--ssl-keyfile"
_SUPERLINK = "flwr.superlink.cli.flower_superlink"
_ADD, _EXECUTOR = "add_FleetServicer_to_server", "_get_superexec_command"


def install(arguments: Sequence[str]) -> None:
    """Prepares this process for `flower_superlink`.

    Args:
        arguments: the command line's; without --ssl-certfile there is nothing to reload.

    Raises:
        FederationError: Flower has no place to add to, which means another release.
    """
    _add_greeting()
    _start_our_executor()
    given = dict(itertools.pairwise(arguments))
    if _CERTIFICATE in given and _KEY in given:
        _reload_fleet(Pair(Path(given[_CERTIFICATE]), Path(given[_KEY])))
        _reload_control(Pair(Path(given[_CERTIFICATE]), Path(given[_KEY])))


class Pair:
    """A certificate's file and its key's, read again when one has changed."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.certificate, self.key = certificate, key
        self._seen: tuple[int, ...] = ()

    def changed(self) -> tuple[bytes, bytes] | None:
        """(certificate, key) when they are others than at the last call and belong together, None otherwise."""
        try:
            now = tuple(path.stat().st_mtime_ns for path in (self.certificate, self.key))
            if now == self._seen:
                return None
            pair = self.certificate.read_bytes(), self.key.read_bytes()
        except OSError:
            return None  # half way through being replaced; what is shown now stays
        if not belongs(*pair):
            return None
        self._seen = now
        return pair


def _flower(name: str) -> tuple[Any, Callable[..., Any]]:
    """The SuperLink's module, and what it calls `name`. Raises FederationError when there is no such thing."""
    superlink = importlib.import_module(_SUPERLINK)
    if not hasattr(superlink, name):
        raise FederationError(f"{_SUPERLINK} has no {name}, expected Flower 1.39", "install the pinned flwr release")
    return superlink, getattr(superlink, name)


def _start_our_executor() -> None:
    superlink, command = _flower(_EXECUTOR)

    def ours(*args: Any, **options: Any) -> list[str]:
        _, *arguments = command(*args, **options)
        return [sys.executable, "-m", "aggregator.superlink.superexec", *arguments]

    setattr(superlink, _EXECUTOR, ours)


def _add_greeting() -> None:
    superlink, add = _flower(_ADD)

    def add_both(servicer: Any, server: grpc.Server) -> None:
        add(servicer, server)

        def is_admitted(public_key: bytes) -> bool:
            return servicer.state_factory.state().get_node_id_by_public_key(public_key) is not None

        server.add_generic_rpc_handlers((greeting.handlers(is_admitted),))

    setattr(superlink, _ADD, add_both)


def _reload_fleet(pair: Pair) -> None:
    def credentials(pairs: Sequence[tuple[bytes, bytes]], **_: Any) -> grpc.ServerCredentials:
        (key, certificate), *_rest = pairs
        first = grpc.ssl_server_certificate_configuration([(key, certificate)])
        pair.changed()  # what was read at the start is not read again

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            new = pair.changed()
            return None if new is None else grpc.ssl_server_certificate_configuration([(new[1], new[0])])

        return grpc.dynamic_ssl_server_credentials(first, fetch)

    grpc.ssl_server_credentials = credentials  # Flower calls it for the Fleet API alone


def _reload_control(pair: Pair) -> None:
    create = uvicorn.config.create_ssl_context

    def create_and_watch(*args: Any, **options: Any) -> ssl.SSLContext:
        context: ssl.SSLContext = create(*args, **options)
        pair.changed()
        threading.Thread(target=_watch, args=(pair, context), daemon=True, name="certificates").start()
        return context

    uvicorn.config.create_ssl_context = create_and_watch


def _watch(pair: Pair, context: ssl.SSLContext) -> None:
    while True:
        time.sleep(RELOAD_S)
        if pair.changed():
            context.load_cert_chain(pair.certificate, pair.key)
