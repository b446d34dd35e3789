"""Where a named checkpoint is, and its hash. Knows no torch: policies and registries use it too.

    >>> checkpoint_path("fedmed-tiny").name
    'fedmed-tiny'
    >>> len(checkpoint_sha256(checkpoint_path("fedmed-tiny")))
    64

| asked for                              | found                                                    |
| -------------------------------------- | -------------------------------------------------------- |
| fedmed-tiny                            | the folder shipped in this package                       |
| a folder with a config.json            | that folder                                              |
| a hub id whose snapshot is on disk     | the snapshot's folder in the hub's cache                 |
| anything else                          | None: `load_base` may ask the hub                        |
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fedmed.errors import ModelError

EMBEDDED = "fedmed-tiny"
ASSETS = Path(__file__).parent / "assets"
# How a checkpoint was made, not what it computes: its times differ from one build to the next.
NOT_HASHED = frozenset({"build.json"})


def checkpoint_path(name: str) -> Path | None:
    """Folder of a checkpoint that is on this machine, or None."""
    if name == EMBEDDED:
        return ASSETS / EMBEDDED
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    return _hub_snapshot(name)


def checkpoint_sha256(folder: Path) -> str:
    """SHA-256 over the sorted (file name, size, bytes) of every file in the folder, hidden ones left out.

    Raises:
        ModelError: no such folder, or nothing in it.
    """
    files = sorted(
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NOT_HASHED and not _hidden(path.relative_to(folder))
    )
    if not files:
        raise ModelError(f"checkpoint folder {folder} holds no files, expected a saved model", "check base_model.name")
    total = hashlib.sha256()
    for name, path in files:
        total.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in relative.parts)


def _hub_snapshot(name: str) -> Path | None:
    """The cached snapshot of a hub id, read from the hub's own folder layout (models--owner--name/refs/main)."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"models--{name.replace('/', '--')}"
    reference = cache / "refs" / "main"
    if not reference.is_file():
        return None
    folder = cache / "snapshots" / reference.read_text().strip()
    return folder if (folder / "config.json").is_file() else None
