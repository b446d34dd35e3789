"""What the server app knows of who may join: which node is which site, who was revoked, what has to be said every round.

    FEDMED_CONSORTIUM=DIR, DIR/nodes.json (aggregator/joining/admission.py) -> require_own_name(node, "north")

`fedmed superlink` sets the environment, and the SuperLink hands it down to the server app: whom to believe does not depend on who
submits a run. Under a SuperLink without node keys, on loopback, names are taken as they come.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from aggregator.joining.provision import certificate_warnings, load
from fedmed.errors import FederationError, FedMedError

NODES = "nodes.json"
FOLDER_KEY, EXPOSED_KEY = "FEDMED_CONSORTIUM", "FEDMED_EXPOSED"


def admitted_sites() -> dict[int, str] | None:
    """node id -> site, as the SuperLink that started this server app admits them; None without node keys.

    Raises:
        FederationError: the SuperLink has node keys and its list cannot be read: nobody is taken in.
    """
    if not (folder := os.environ.get(FOLDER_KEY)):
        return None
    path = Path(folder) / NODES
    try:
        return {int(node): str(site) for node, site in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}  # the SuperLink has just been started
    except (OSError, ValueError, AttributeError) as error:
        raise FederationError(f"{path} cannot be read: {type(error).__name__}", "restart `fedmed superlink`") from None


def require_own_name(node: int, site: str) -> None:
    """Raises FederationError when the node's key was admitted for another site, or not at all. Silent without node keys."""
    sites = admitted_sites()
    if sites is not None and sites.get(node) != site:
        whose = f"the key of site {sites[node]}" if node in sites else "no admitted key"
        raise FederationError(
            f"calls itself {site[:80]!r} with {whose}", "`fedmed provision status` lists who may join"
        )


def why_absent(site: str) -> str:
    """What the register says about a site that is not there; empty when it may join, or without node keys."""
    if not (folder := os.environ.get(FOLDER_KEY)):
        return ""
    try:
        entries = [entry for entry in load(Path(folder)).register.entries() if entry.site == site]
    except FedMedError:
        return ""
    if not entries:
        return "no key was admitted for it"
    last = entries[-1]
    return f"revoked on {last.ended[:10]}" if last.state == "revoked" else ""


def standing_warnings() -> list[str]:
    """What the consortium is to be told every round: a certificate near its end, traffic that anybody can read."""
    lines = []
    if exposed := os.environ.get(EXPOSED_KEY):
        lines.append(
            f"INSECURE: anybody on the way can read and change what goes to and from {exposed}, and anybody may join"
        )
    if folder := os.environ.get(FOLDER_KEY):
        try:
            lines += certificate_warnings(load(Path(folder)))
        except FedMedError as error:
            lines.append(error.message)
    return lines
