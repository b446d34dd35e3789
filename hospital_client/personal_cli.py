"""`fedmed-site personal`: the hospital's own model, where a method leaves a part of it to the sites.

fedmed-site personal export north pneumonia-7 north-model      base and adapter, merged; it never leaves by itself
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hospital_client.consent_cli import Folder

app = typer.Typer(no_args_is_help=True, help="The hospital's own model.")


@app.callback()
def personal() -> None:
    """Keeps `export` a command of its own: a typer app of one command would be that command."""


@app.command()
def export(
    directory: Folder,
    run: Annotated[str, typer.Argument(metavar="RUN", help="the run's name in audit.jsonl", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="a folder to make", show_default=False)],
) -> None:
    """Write the model that the site's last round of RUN left here: base and adapter, merged."""
    from hospital_client.personal import export_model
    from hospital_client.settings import load_site

    number = export_model(load_site(directory), run, target)
    typer.echo(f"made {target}: this site's own model as round {number} of {run} left it")
    typer.echo("  it is protected as a released adapter is, by the run's epsilon; the consortium does not have it")
