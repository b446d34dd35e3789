"""The kit: what the consortium hands a site, as a folder or a tar file of the same name.

    write_kit(folder, Kit(...)) -> folder/{connection.yaml, root.pem[, node.key, node.pub]}, folder.tar
    read_kit(folder or tar)     -> Kit

| file            | what it is                                                                                       |
| --------------- | ------------------------------------------------------------------------------------------------ |
| connection.yaml | the site's name, the SuperLink's address, the fingerprint of the node key that was admitted       |
| root.pem        | the consortium's CA, by which the site knows the SuperLink; not a secret, but it must be the right one |
| node.key        | the site's private key, only where the consortium made it; mode 0600. Better: `fedmed-site keygen` |
| node.pub        | its public half                                                                                  |

A tar file is read by the four names alone and never unpacked: whatever else it holds is not looked at.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import tempfile
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from fedmed.errors import AdmissionError, ConfigError
from fedmed.typed import parse_file

CONNECTION, ROOT, KEY, PUBLIC = "connection.yaml", "root.pem", "node.key", "node.pub"
FILES = (CONNECTION, ROOT, KEY, PUBLIC)
SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
MAX_FILE_BYTES = 1 << 16
_HINT = "ask the consortium for a new kit (`fedmed provision site DIR NAME`)"


@dataclass(frozen=True, slots=True)
class Kit:
    """`key` is empty where the site made its own; a secret otherwise."""

    site: str
    superlink: str
    fingerprint: str
    root: bytes
    key: bytes = field(default=b"", repr=False)
    public: bytes = b""

    @property
    def files(self) -> dict[str, bytes]:
        """Name -> content, those that the kit has."""
        settings = (
            "# How this site reaches its consortium. `fedmed-site join KIT DIR` puts the kit in its place.\n"
            f"site: {self.site}\n"
            f"superlink: {json.dumps(self.superlink)}  # the Fleet address, gRPC over TLS\n"
            f"key: {self.fingerprint}  # of the node key that was admitted: ssh-keygen -lf node.pub\n"
        )
        known = {CONNECTION: settings.encode(), ROOT: self.root, KEY: self.key, PUBLIC: self.public}
        return {name: data for name, data in known.items() if data}


@dataclass(frozen=True, slots=True)
class _Settings:
    site: str
    superlink: str
    key: str


def write_kit(folder: Path, kit: Kit) -> Path:
    """The kit as a folder (0700) and as `folder`.tar (0600), in place of an older one; returns the tar's path."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in kit.files.items():
            _write(folder / name, data)
            entry = tarfile.TarInfo(f"{folder.name}/{name}")
            entry.size, entry.mode = len(data), 0o600
            archive.addfile(entry, BytesIO(data))
    tar = folder.with_name(folder.name + ".tar")
    tar.unlink(missing_ok=True)
    _write(tar, packed.getvalue())
    return tar


def read_kit(path: Path) -> Kit:
    """Raises AdmissionError when it is no kit, is damaged, or says something that no kit says."""
    files = _read_folder(path) if path.is_dir() else _read_tar(path)
    if missing := [name for name in (CONNECTION, ROOT) if name not in files]:
        raise AdmissionError(f"{path} is no kit: it lacks {', '.join(missing)}", _HINT)
    settings = _parse(files[CONNECTION], path)
    problems = [] if SITE_NAME.fullmatch(settings.site) else [f"site: {settings.site!r} is no site's name"]
    problems += [] if FINGERPRINT.fullmatch(settings.key) else [f"key: {settings.key!r} is no fingerprint"]
    problems += address_problems("superlink", settings.superlink)
    if problems:
        raise AdmissionError(f"{path}: {CONNECTION}: {'; '.join(problems)}", _HINT)
    return Kit(
        settings.site, settings.superlink, settings.key, files[ROOT], files.get(KEY, b""), files.get(PUBLIC, b"")
    )


def address_problems(key: str, address: str) -> list[str]:
    """Nothing when `address` is HOST:PORT, a line that says so otherwise."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and 0 < int(port) < 65536 and not set(host) & set(" /\t\n"):
        return []
    return [f"{key}: {address!r}: expected HOST:PORT"]


def _parse(text: bytes, path: Path) -> _Settings:
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / CONNECTION
        copy.write_bytes(text)
        try:
            return parse_file(_Settings, copy, _HINT)
        except (ConfigError, UnicodeDecodeError) as error:
            problems = error.problems if isinstance(error, ConfigError) else ["not UTF-8"]
            raise AdmissionError(f"{path}: {'; '.join(problems)}".replace(str(copy), CONNECTION), _HINT) from None


def _read_folder(folder: Path) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    except OSError as error:
        raise AdmissionError(f"kit {folder} cannot be read: {error.strerror}") from None


def _read_tar(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r:") as archive:
            for entry in archive:
                name = entry.name.rpartition("/")[2]
                if name in FILES and entry.isfile() and entry.size <= MAX_FILE_BYTES:
                    stream = archive.extractfile(entry)
                    files[name] = stream.read() if stream else b""
    except OSError as error:
        raise AdmissionError(f"kit {path} cannot be read: {error.strerror}", _HINT) from None
    except tarfile.TarError:
        raise AdmissionError(f"{path} is no kit: neither a folder nor a tar file", _HINT) from None
    return files


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
