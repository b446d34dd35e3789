"""A version's files come into a folder whole and verified, or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aggregator.registry.base import MANIFEST_TAG, Version
from aggregator.registry.model_folder import MANIFEST, file_sha256, verify_model
from fedmed.errors import RegistryError


@contextlib.contextmanager
def fetched_folder(version: Version, destination: Path) -> Iterator[Path]:
    """A folder to copy the version's files into; on leaving it is verified and becomes `destination`.

    The manifest's own hash is a tag of the version, so that whoever can write the artifact store, but not the
    registry, cannot exchange a file together with its hash.

    Raises:
        RegistryError: `destination` holds something already; or a file is not what its hash says (it is then removed).
    """
    if destination.exists() and any(destination.iterdir()):
        raise RegistryError(f"{destination} is not empty", "name a folder that does not exist yet")
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".fetch-", dir=destination.parent))
    try:
        yield part
        _check_manifest(version, part)
        verify_model(part)
        part.replace(destination)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_manifest(version: Version, folder: Path) -> None:
    if not (folder / MANIFEST).is_file():
        raise RegistryError(f"{version.reference} holds no {MANIFEST}, so FedMed did not publish it")
    expected, found = version.tags.get(MANIFEST_TAG, ""), file_sha256(folder / MANIFEST)
    if found != expected:
        raise RegistryError(
            f"{MANIFEST} of {version.reference} has SHA-256 {found[:12]}, the registry says {expected[:12]!r}",
            "do not serve it: the artifact store was changed after publishing",
        )
