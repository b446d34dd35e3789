"""Admission: the register's keys become the SuperLink's nodes, and the server app learns which node is which site.

    register.jsonl --apply--> Flower's nodes --> nodes.json {node id: site} --> the server app's roster (admitted.py)

Flower's Control API names the public key of every node, and the Fleet API holds each call of a node to that key. So the chain
node id -> key -> site name is closed: no site can speak for another, whatever its answers say.

| what happens                                 | what comes of it                                                      |
| -------------------------------------------- | --------------------------------------------------------------------- |
| a valid key that the SuperLink does not know | registered under the site's name                                      |
| a node whose key is not valid any more       | unregistered: its next call is refused, its open tasks are lost to it |
| a site's newer key was seen                  | the older one is replaced in the register, then unregistered          |
| the SuperLink was restarted                  | all of it again; node ids are new, names are not                      |
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control import ControlHttpClient

from aggregator.joining.admitted import NODES
from aggregator.joining.provision import Consortium
from aggregator.joining.register import Entry
from fedmed.errors import FederationError
from fedmed.files import READABLE, write_atomic
from fedmed.node_keys import public_pem

_GONE = "unregistered"


class Nodes(Protocol):
    """The SuperLink's list of nodes."""

    def listed(self) -> list[NodeInfo]:
        """All nodes, those that were unregistered too."""

    def register(self, public_key: bytes, site: str) -> None:
        """Makes a node of a key."""

    def unregister(self, node: int) -> None:
        """Takes a node's key out of use."""


class ControlNodes:
    """The nodes over Flower's Control API (protobuf over HTTPS)."""

    def __init__(self, address: str, root_certificates: bytes) -> None:
        self._address = address
        self._client = ControlHttpClient.from_server_address(address, False, root_certificates, [])

    def listed(self) -> list[NodeInfo]:
        try:
            return list(self._client.ListNodes(ListNodesRequest()).nodes_info)
        except httpx.HTTPError as error:
            raise self._lost(error) from None

    def register(self, public_key: bytes, site: str) -> None:
        try:
            self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=site))
        except httpx.HTTPError as error:
            raise self._lost(error) from None

    def unregister(self, node: int) -> None:
        try:
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))
        except httpx.HTTPStatusError:
            # Flower 1.39 in memory takes a node out that was never active, and then fails to note when: look, do not trust.
            if any(item.node_id == node and item.status != _GONE for item in self.listed()):
                raise FederationError(f"the SuperLink at {self._address} does not let go of node {node}") from None
        except httpx.HTTPError as error:
            raise self._lost(error) from None

    def _lost(self, error: httpx.HTTPError) -> FederationError:
        return FederationError(
            f"the SuperLink's Control API at {self._address} does not answer: {type(error).__name__}",
            "see superlink.log in the consortium's folder",
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """What one `apply` did, as names of sites. `renewing`: of those with a newer key that was not seen yet."""

    admitted: tuple[str, ...]
    ended: tuple[str, ...]
    renewing: tuple[str, ...] = ()


def apply(consortium: Consortium, nodes: Nodes) -> Changes:
    """Makes the SuperLink's nodes those of the register, and writes nodes.json.

    Raises:
        AdmissionError: the register cannot be trusted.
        FederationError: the SuperLink does not answer.
    """
    known = {bytes(node.public_key): node for node in nodes.listed()}
    _note_replaced(consortium, known)
    entries = consortium.register.valid()
    valid = {public_pem(entry.public): entry.site for entry in entries}
    missing = [key for key in valid if key not in known]
    ended = [node for key, node in known.items() if key not in valid and node.status != _GONE]
    for node in ended:
        nodes.unregister(node.node_id)
    for key in missing:
        nodes.register(key, valid[key])
    now = {bytes(node.public_key): node for node in nodes.listed() if node.status != _GONE}
    _write_nodes(consortium.root, {str(node.node_id): valid[key] for key, node in now.items() if key in valid})
    names = [entry.site for entry in entries]
    return Changes(
        admitted=tuple(sorted({valid[key] for key in missing})),
        ended=tuple(sorted({node.name or "a stranger" for node in ended})),
        renewing=tuple(sorted({name for name in names if names.count(name) > 1})),
    )


def _note_replaced(consortium: Consortium, known: dict[bytes, NodeInfo]) -> None:
    """Of two valid keys of a site, the older ends when the newer has been active."""
    by_site: dict[str, list[Entry]] = {}
    for entry in consortium.register.valid():
        by_site.setdefault(entry.site, []).append(entry)
    for entries in by_site.values():
        newest = known.get(public_pem(entries[-1].public))
        if newest is not None and newest.last_activated_at:
            _replace_all(consortium, entries[:-1])


def _replace_all(consortium: Consortium, entries: Iterable[Entry]) -> None:
    for entry in entries:
        consortium.register.replace(entry)


def _write_nodes(root: Path, nodes: dict[str, str]) -> None:
    path, text = root / NODES, json.dumps(nodes, sort_keys=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text.encode(), READABLE)
