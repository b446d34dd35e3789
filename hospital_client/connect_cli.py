"""`fedmed-site connect`: the site in its federation, until SIGTERM or Ctrl-C.

fedmed-site connect /srv/fedmed/site                                        after `fedmed-site join`: TLS and the site's key
fedmed-site connect /srv/fedmed/site --superlink 127.0.0.1:9092 --insecure  in plain text, on one machine
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from fedmed.errors import ConfigError, FedMedError
from fedmed.heap import large_blocks_apart
from hospital_client.consent_cli import Folder

if TYPE_CHECKING:
    from hospital_client.connect import Connector

log = logging.getLogger("fedmed.connect")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# States that are as they should be, and those that nobody has to do anything about.
_GOOD = ("connected", "stopped")
# How often a certificate near its end or a clock that drifts is looked at and told.
WARN_S = 24 * 3600.0


def connect(
    directory: Folder,
    superlink: Annotated[
        str, typer.Option(help="HOST:PORT of the Fleet API; not needed after `join`", show_default=False)
    ] = "",
    root_certificates: Annotated[Path | None, typer.Option(help="PEM of the CA that signed its certificate")] = None,
    node_key: Annotated[Path | None, typer.Option(help="the site's key, which the consortium has registered")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="plain text; anywhere but here a bad idea")] = False,
) -> None:
    """Take the consortium's tasks to the site daemon and its answers back, until SIGTERM or Ctrl-C."""
    if superlink:
        connector = _by_hand(directory, superlink, root_certificates, node_key, insecure)
    elif root_certificates or node_key or insecure:
        raise ConfigError(["--root-certificates, --node-key and --insecure go with --superlink"], "give --superlink")
    else:
        connector = _as_joined(directory)
    large_blocks_apart()
    _run(connector)


def _by_hand(
    directory: Path, address: str, root_certificates: Path | None, node_key: Path | None, insecure: bool
) -> Connector:
    from fedmed.kit import address_problems
    from fedmed.node_keys import read_private
    from hospital_client.connect import Connector
    from hospital_client.fleet import Node
    from hospital_client.settings import load_site

    loopback = address.rpartition(":")[0].strip("[]") in _LOOPBACK
    problems = address_problems("--superlink", address)
    if insecure and root_certificates:
        problems.append("--insecure and --root-certificates: expected one of the two")
    if not (insecure or root_certificates or loopback):
        problems.append(f"--superlink {address} is not on this machine: expected --root-certificates for TLS")
    if node_key and not root_certificates:
        problems.append("--node-key: expected --root-certificates too, since keys need TLS")
    if problems:
        raise ConfigError(problems, "`fedmed-site join` sets all of this from the consortium's kit")
    if insecure and not loopback:
        typer.echo(f"WARNING: plain text to {address}: anybody on the way can read and change what is sent", err=True)
    root = _read_certificates(root_certificates) if root_certificates else None
    node = Node(address, root, read_private(node_key) if node_key else None)
    return Connector(node, load_site(directory).socket, _say)


def _as_joined(directory: Path) -> Connector:
    from hospital_client.audit import Audit
    from hospital_client.connect import Connector
    from hospital_client.connection import load_connection
    from hospital_client.fleet import Node
    from hospital_client.reach import reach

    connection = load_connection(directory)
    audit = Audit(connection.audit)

    def say(state: str, text: str) -> None:
        _say(state, text)
        try:
            audit.write(state, message=text)
        except OSError as error:  # a full disk must not take the site off the federation
            log.error("%s cannot be written: %s", connection.audit.name, error.strerror)

    def look_into(error: FedMedError) -> FedMedError:
        try:
            reach(connection)
        except FedMedError as found:
            return found
        return error

    def warn() -> None:
        while True:
            with contextlib.suppress(FedMedError):  # what keeps the site out is said by the connector itself
                for line in reach(connection).warnings:
                    say("warning", line)
            time.sleep(WARN_S)

    threading.Thread(target=warn, name="warnings", daemon=True).start()
    settings = connection.settings
    node = Node(settings.superlink, connection.root, connection.key)
    return Connector(node, Path(settings.socket), say, look_into)


def _read_certificates(path: Path) -> bytes:
    from cryptography import x509

    try:
        data = path.read_bytes()
        x509.load_pem_x509_certificates(data)
    except OSError as error:
        raise ConfigError([f"--root-certificates {path}: {error.strerror}"]) from None
    except ValueError:
        raise ConfigError([f"--root-certificates {path} holds no certificate, expected PEM"]) from None
    return data


def _say(state: str, text: str) -> None:
    log.log(logging.INFO if state in _GOOD else logging.WARNING, "%s", text)


def _run(connector: Connector) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    connector.run(stop)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a message that still waits for the daemon would hold an ordinary exit up; the daemon keeps its result
