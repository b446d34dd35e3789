"""`fedmed-site combine`: manifests that were imported one by one become the one that a site trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def combine(
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="the manifest's folder to make")],
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="two or more manifests' folders")],
    apart: Annotated[
        bool, typer.Option("--apart", help="the same id in two folders is two persons; default: one")
    ] = False,
) -> None:
    """Put several manifests into one: captions, conversations and questions of the same patients."""
    from fedmed.data import combine as combining

    manifest = combining.combine(destination, folders, apart=apart)
    tasks = sorted({example.task for example in manifest.examples})
    typer.echo(f"{len(manifest.examples)} examples ({', '.join(tasks)}) of {manifest.num_patients} patients")
    typer.echo(f"  manifest in {destination}")
