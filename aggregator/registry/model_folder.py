"""A published model on disk: data files and one manifest that hashes them all. Torch-free.

    model/
      adapter/    adapter_config.json, adapter_model.safetensors       (PEFT's format), virtual_tokens.safetensors
      merged/     model.safetensors, config.json, processor, tokenizer (a plain transformers checkpoint, but after prefix
                  tuning: fedmed.models.prefixed)
      manifest.json                                                    (lineage, privacy, metrics, files -> sha256)

    >>> manifest = verify_model(Path("runs/demo/model"))     # before anything in it is loaded

| found in the folder                          | what happens                                   |
| -------------------------------------------- | ---------------------------------------------- |
| a file whose SHA-256 is not the manifest's   | RegistryError naming the file                  |
| a listed file that is missing                | RegistryError naming the file                  |
| a file that the manifest does not list       | RegistryError naming the file                  |
| a link, or a path that leaves the folder     | RegistryError naming the path                  |
| a suffix that could hold code (.py, .bin, …) | RegistryError naming the file, listed or not   |
| another schema version                       | RegistryError naming both versions             |
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmed.errors import RegistryError
from fedmed.files import write_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
# Formats that hold data only. Anything else (pickles, Python files) could run when a library loads the folder.
DATA_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model"})
_HINT = "do not serve it; publish the run again (fedmed registry replay RUN) or restore the store from a backup"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, lineage: Mapping[str, Any]) -> dict[str, Any]:
    """Hash every file below `folder` and write manifest.json, with `lineage` beside the hashes.

    Raises:
        RegistryError: a file that is not plain data.
    """
    names = sorted(_data_files(folder))
    files = {name: file_sha256(folder / name) for name in names}
    manifest = {"schema_version": SCHEMA_VERSION, **lineage, "files": files}
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json without checking the files it lists; see `verify_model`."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise RegistryError(f"{folder} holds no {MANIFEST}, so it is not a published model", _HINT) from None
    except (ValueError, OSError) as error:
        raise RegistryError(f"{path} is not readable JSON: {type(error).__name__}", _HINT) from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise RegistryError(
            f"{path} has schema version {version!r}, this release reads {SCHEMA_VERSION}",
            "use the FedMed release that wrote it, or publish the run again",
        )
    if not isinstance(manifest.get("files"), dict):
        raise RegistryError(f"{path} lists no files", _HINT)
    return dict(manifest)


def verify_model(folder: Path) -> dict[str, Any]:
    """The manifest, after every file has been found to be exactly what it lists; see the table above.

    Raises:
        RegistryError: naming the first file that is wrong.
    """
    manifest = read_manifest(folder)
    files: dict[str, str] = manifest["files"]
    present = _data_files(folder)
    if missing := sorted(set(files) - present):
        raise RegistryError(f"{missing[0]} is missing from {folder}, {MANIFEST} lists it", _HINT)
    if extra := sorted(present - set(files)):
        raise RegistryError(f"{extra[0]} in {folder} is not listed in {MANIFEST}", _HINT)
    for name, expected in sorted(files.items()):
        found = file_sha256(folder / name)
        if found != expected:
            raise RegistryError(f"{name} has SHA-256 {found[:12]}, {MANIFEST} says {str(expected)[:12]}", _HINT)
    return manifest


def _data_files(folder: Path) -> set[str]:
    """Paths below `folder`, relative and with slashes, without the manifest itself."""
    names = set()
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root) / name
            if path.is_symlink():
                raise RegistryError(f"{path.relative_to(folder)} in {folder} is a link, expected a plain file", _HINT)
        for name in files:
            path = Path(root) / name
            if path.suffix not in DATA_SUFFIXES:
                raise RegistryError(
                    f"{path.relative_to(folder)} in {folder} is not of a data format ({', '.join(sorted(DATA_SUFFIXES))})",
                    _HINT,
                )
            names.add(path.relative_to(folder).as_posix())
    return names - {MANIFEST}
