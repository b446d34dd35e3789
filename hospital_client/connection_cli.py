"""`fedmed-site keygen` and `fedmed-site join`: how a hospital becomes a site of a consortium.

fedmed-site keygen /srv/fedmed/site                 a node key; its public half goes to the consortium, the key stays
fedmed-site join north.tar /srv/fedmed/site         the consortium's kit into its place: DIR.connection
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hospital_client.consent_cli import Folder


def keygen(directory: Folder) -> None:
    """Make this site's node key; a second one beside it when there is one, for a renewal without a gap."""
    from fedmed.node_keys import fingerprint, read_public
    from hospital_client.connection import make_key

    public = make_key(directory)
    typer.echo(f"made a node key; its public half is {public}")
    typer.echo(f"  {fingerprint(read_public(public))}: read this to the consortium over another channel")
    typer.echo(f"  next: send {public.name}, get a kit back, then `fedmed-site join KIT {directory}`")


def join(
    kit: Annotated[Path, typer.Argument(metavar="KIT", help="the consortium's kit: a tar file or folder")],
    directory: Folder,
    user: Annotated[str, typer.Option(help="who runs `fedmed-site connect`; needs root", show_default=False)] = "",
) -> None:
    """Put the consortium's kit into its place, so that `fedmed-site connect DIR` needs no more."""
    from fedmed.kit import read_kit
    from hospital_client.connection import join as place

    connection = place(read_kit(kit), directory, user)
    typer.echo(f"site {connection.settings.site} connects to {connection.settings.superlink} with {connection.folder}")
    typer.echo(f"  next: `fedmed-site check {directory}`, then `fedmed-site connect {connection.folder}`")
