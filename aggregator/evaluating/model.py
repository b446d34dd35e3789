"""What MODEL on the command line means: a registered version, a published model's folder, or a checkpoint.

    with opened("fedmed@champion", registry, "auto") as candidate:
        candidate.version.reference, candidate.base.model

| MODEL                        | loaded is                                                         | scores are logged       |
| ---------------------------- | ----------------------------------------------------------------- | ----------------------- |
| NAME@ALIAS, NAME:NUMBER      | the version's merged model, every hash verified                   | to the version's run    |
| a folder with manifest.json  | the same of a folder, such as runs/NAME/model                     | no                      |
| another folder, fedmed-tiny  | the checkpoint (fedmed.models.base)                               | no                      |
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.registry import Registry, Version, parse_reference
from aggregator.registry.model_folder import MANIFEST, verify_model
from fedmed.errors import ModelError, RegistryError
from fedmed.models.checkpoint import checkpoint_path

if TYPE_CHECKING:
    from fedmed.models.base import BaseModel


@dataclass(frozen=True)
class Candidate:
    """A model to be asked.

    Attributes:
        name: as reports show it: NAME:NUMBER of a version, else as it was given.
        asked: as it was given.
        version: where it is registered.
        manifest: of a published model, with its lineage; empty for a plain checkpoint.
    """

    name: str
    asked: str
    base: BaseModel = field(repr=False)
    version: Version | None
    manifest: dict[str, Any] = field(repr=False)


def is_registered(model: str) -> bool:
    """Whether MODEL means a registered version.

    Raises:
        ModelError: it is neither a reference nor a checkpoint on this disk.
    """
    if Path(model).is_dir() or checkpoint_path(model) is not None:
        return False
    try:
        parse_reference(model)
    except RegistryError:
        raise ModelError(
            f"model {model!r} is neither NAME@ALIAS or NAME:VERSION, nor a model folder on this disk",
            "for example fedmed@champion, or runs/NAME/model; `fedmed registry list` shows what there is",
        ) from None
    return True


@contextlib.contextmanager
def opened(model: str, registry: Registry, device: str) -> Iterator[Candidate]:
    """The model, loaded; its files are kept for as long as the block lasts.

    Raises:
        ModelError: as `is_registered`, or it cannot be loaded.
        RegistryError: no such version, or a file is not what its hash says.
    """
    from fedmed.models.base import load_base

    if not is_registered(model):
        folder = Path(model)
        manifest = verify_model(folder) if (folder / MANIFEST).is_file() else {}
        base = load_base(str(folder / "merged") if manifest else model, device=device)
        yield Candidate(model, model, base, None, manifest)
        return
    version = registry.get(model)
    with tempfile.TemporaryDirectory(prefix="fedmed-") as cache:
        folder = registry.fetch(version.reference, Path(cache) / "model")
        manifest = verify_model(folder)
        yield Candidate(version.reference, model, load_base(str(folder / "merged"), device=device), version, manifest)
