"""A site's connection: what the process that talks to the SuperLink needs, in a folder of its own.

    make_key(DIR)                       -> node.key, node.pub: the public half goes to the consortium
    join(read_kit("north.tar"), DIR)    -> connection.yaml, root.pem (, node.key)
    load_connection(DIR)                -> Connection, for `fedmed-site connect`

DIR.connection (0700) lies beside the site's folder DIR: who connects is another user than the daemon's, may read this and nothing
of the site's, and owns it.

| file            | what it is                                                                     |
| --------------- | ------------------------------------------------------------------------------ |
| connection.yaml | site, superlink, socket                                                        |
| root.pem        | the consortium's CA                                                            |
| node.key (0600) | proves to the SuperLink who this site is; never leaves where it was made       |
| node.pub        | its public half: not a secret                                                  |
| next.key next.pub | a newer pair that the consortium has not admitted yet; `join` puts it in place |
| audit.jsonl     | when the site was connected, refused, and why                                  |

| what happens                                          | what comes of it                                              |
| ----------------------------------------------------- | ------------------------------------------------------------- |
| a kit for another site's name                         | AdmissionError; nothing is written                            |
| a kit without key, for a key that is not here         | AdmissionError naming both fingerprints; nothing is written   |
| a kit without key, for the newer pair                 | the newer pair takes the older one's place                    |
| a kit with a key                                      | it takes the place of the one that is here                    |
| a key again where one is                              | made beside it: the old one works until `join`                |
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from fedmed.errors import AdmissionError, ConfigError
from fedmed.files import sync_folder, write_atomic
from fedmed.kit import KEY, PUBLIC, ROOT, Kit, address_problems
from fedmed.node_keys import (
    PrivateKey,
    fingerprint,
    new_private_key,
    private_file,
    public_line,
    read_private,
    read_public,
    write_secret,
)
from fedmed.typed import parse_file
from hospital_client.settings import load_site

SETTINGS, NEXT_KEY, NEXT_PUBLIC, AUDIT = "connection.yaml", "next.key", "next.pub", "audit.jsonl"
_JOIN = "`fedmed-site join KIT DIR` with the consortium's kit"


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """connection.yaml: the site's name, the SuperLink's Fleet address (TLS), the site daemon's socket."""

    site: str
    superlink: str
    socket: str


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection's folder, read and checked."""

    folder: Path
    settings: ConnectionSettings
    root: bytes
    key: PrivateKey = field(repr=False)

    @property
    def audit(self) -> Path:
        return self.folder / AUDIT


def connection_folder(directory: Path) -> Path:
    """DIR itself where it holds a connection, DIR.connection beside a site's folder otherwise."""
    root = directory.absolute()
    return root if (root / SETTINGS).exists() else root.with_name(root.name + ".connection")


def make_key(site_root: Path) -> Path:
    """A node key for a site; a second one beside the first that is in use. Returns the public half's file.

    Raises:
        ConfigError: not a site's folder.
        AdmissionError: the key cannot be written.
    """
    name = load_site(site_root).settings.name
    folder = _make_folder(connection_folder(site_root))
    secret, public = (NEXT_KEY, NEXT_PUBLIC) if (folder / KEY).exists() else (KEY, PUBLIC)
    (folder / secret).unlink(missing_ok=True)  # only ever a newer pair that was not put in place
    key = new_private_key()
    write_secret(folder / secret, private_file(key))
    write_atomic(folder / public, f"{public_line(key.public_key(), name)}\n".encode())
    return folder / public


def join(kit: Kit, site_root: Path, user: str = "") -> Connection:
    """Puts a kit into its place beside the site's folder.

    Args:
        user: who will connect, and own the connection's folder; "" is this user. Another one needs root.

    Raises:
        ConfigError: not a site's folder, or no such user.
        AdmissionError: the kit is for another site or another key, or its files are not what they should be.
    """
    settings = load_site(site_root).settings
    if kit.site != settings.name:
        raise AdmissionError(
            f"the kit is for site {kit.site!r}, and {site_root} is site {settings.name!r}",
            "take the right kit, or ask the consortium for one under this name",
        )
    _check_root(kit.root)
    folder = _make_folder(connection_folder(site_root))
    _place_key(folder, kit)
    socket = os.path.abspath(site_root / settings.socket)
    write_atomic(folder / ROOT, kit.root)
    write_atomic(folder / SETTINGS, _text(ConnectionSettings(kit.site, kit.superlink, socket)).encode())
    if user:
        _give(folder, user)
    return load_connection(folder)


def load_connection(directory: Path) -> Connection:
    """The connection in DIR, or of the site whose folder DIR is.

    Raises:
        AdmissionError: the site has not joined, or a file is not what it should be.
    """
    folder = connection_folder(directory)
    if not (folder / SETTINGS).exists():
        raise AdmissionError(f"{directory} has joined no consortium: there is no {folder / SETTINGS}", _JOIN)
    try:
        settings = parse_file(ConnectionSettings, folder / SETTINGS, _JOIN)
        root = (folder / ROOT).read_bytes()
    except ConfigError as error:
        raise AdmissionError("; ".join(error.problems), _JOIN) from None
    except OSError as error:
        raise AdmissionError(f"{folder / ROOT} cannot be read: {error.strerror}", _JOIN) from None
    if problems := address_problems("superlink", settings.superlink):
        raise AdmissionError(f"{folder / SETTINGS}: {problems[0]}", _JOIN)
    _check_root(root)
    return Connection(folder, settings, root, read_private(folder / KEY))


def _place_key(folder: Path, kit: Kit) -> None:
    if kit.key:
        write_atomic(folder / NEXT_KEY, kit.key)
        _require(folder / NEXT_KEY, kit.fingerprint)
        write_atomic(folder / NEXT_PUBLIC, kit.public)
    here = {name: _mark(folder / name) for name in (PUBLIC, NEXT_PUBLIC)}
    if here[NEXT_PUBLIC] == kit.fingerprint:
        if (folder / NEXT_KEY).exists():
            _require(folder / NEXT_KEY, kit.fingerprint)
            os.replace(folder / NEXT_KEY, folder / KEY)
        _require(
            folder / KEY, kit.fingerprint
        )  # a join that was cut off here had placed the key and not its public half
        os.replace(folder / NEXT_PUBLIC, folder / PUBLIC)
        sync_folder(folder)
    elif here[PUBLIC] != kit.fingerprint:
        found = ", ".join(mark for mark in here.values() if mark) or "none"
        raise AdmissionError(
            f"the kit was made for the key {kit.fingerprint}, and {folder} has {found}",
            f"send the consortium {folder / PUBLIC} (`fedmed-site keygen` makes it), and join with the kit made for it",
        )


def _require(path: Path, mark: str) -> None:
    """Raises AdmissionError unless the private key is the one of this fingerprint."""
    if (found := fingerprint(read_private(path).public_key())) != mark:
        if path.name == NEXT_KEY:  # never the key in use
            path.unlink()
        raise AdmissionError(
            f"{path.name} is the key {found}, and the kit says {mark}", "ask the consortium for a new kit"
        )


def _mark(path: Path) -> str:
    return fingerprint(read_public(path)) if path.exists() else ""


def _check_root(root: bytes) -> None:
    try:
        x509.load_pem_x509_certificates(root)
    except ValueError:
        raise AdmissionError(f"{ROOT} is no certificate", "ask the consortium for a new kit") from None


def _make_folder(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _give(folder: Path, user: str) -> None:
    try:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
    except LookupError:
        raise ConfigError([f"--user {user!r}: there is no such user"], "useradd --system USER") from None
    except OSError as error:
        raise ConfigError(
            [f"--user {user!r}: {folder} cannot be given away: {error.strerror}"], "run this as root"
        ) from None


def _text(settings: ConnectionSettings) -> str:
    return (
        "# Made by `fedmed-site join`. How this site reaches its consortium's SuperLink.\n"
        f"site: {json.dumps(settings.site)}\n"
        f"superlink: {json.dumps(settings.superlink)}  # HOST:PORT of its Fleet API, over TLS\n"
        f"socket: {json.dumps(settings.socket)}  # the site daemon's\n"
    )
