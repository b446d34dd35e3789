"""How frames reach the sites and come back: one exchange is a frame to each node and one Reply from each.

    {node: frame} -> send -> Reply, Reply, ... as they arrive, at the latest at the deadline

`FlowerExchange` speaks through Flower's Grid; `LocalExchange` calls functions in this process and is what unit tests
and tuning use:

    >>> exchange = LocalExchange({"north": lambda frame: frame[::-1]})
    >>> [reply.frame for reply in exchange.send({node: b"abc" for node in exchange.nodes()}, deadline_s=1.0)]
    [b'cba']

| what happens                                | what the caller sees                                            |
| ------------------------------------------- | --------------------------------------------------------------- |
| a node answers                              | Reply with its frame, at once                                   |
| a node dies, or its relay raises            | Reply with Flower's reason                                      |
| no answer at the deadline                   | Reply with an error; Flower drops the task when it is not begun |
| the answer comes after the deadline         | fetched, thrown away                                            |
| a node still owes the answer to an old task | not among `nodes()`: nothing queues up behind a slow site       |

How long a node took is measured here, from sending to arrival: sites do not say how long they trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fedmed.errors import WireError
from fedmed.wire.record import pack, unpack

POLL_S = 0.2
# Flower stops delivering a message after its time to live; a site that began just before the deadline may still answer.
TTL_SLACK_S = 30.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back from one node `seconds` after it was sent to: its frame, or the reason why there is none."""

    node: int
    frame: bytes | None
    error: str = ""
    seconds: float = 0.0


class Exchange(Protocol):
    """Carries frames to nodes. Nodes are numbers that stay the same while a node is connected."""

    def nodes(self) -> list[int]:
        """The connected nodes that owe no answer, in ascending order."""

    def send(self, frames: Mapping[int, bytes], deadline_s: float) -> Iterator[Reply]:
        """Sends each node its frame; yields exactly one Reply per node, in the order of arrival."""


class FlowerExchange:
    """The exchange over Flower's Grid. Replies are pulled one by one, so that one frame is in memory at a time."""

    def __init__(self, grid: Grid, poll_s: float = POLL_S) -> None:
        self._grid = grid
        self._poll_s = poll_s
        self._late: dict[str, int] = {}  # message id -> node, for answers that missed their deadline

    def nodes(self) -> list[int]:
        for message_id in list(self._late):
            if list(self._grid.pull_messages([message_id])):
                del self._late[message_id]
        return sorted(set(self._grid.get_node_ids()) - set(self._late.values()))

    def send(self, frames: Mapping[int, bytes], deadline_s: float) -> Iterator[Reply]:
        begin = time.monotonic()
        end = begin + deadline_s
        waiting = self._push(frames, deadline_s)
        yield from (
            Reply(node, None, "the SuperLink did not take the task") for node in set(frames) - {*waiting.values()}
        )
        while waiting and time.monotonic() < end:
            for message_id in list(waiting):
                if replies := list(self._grid.pull_messages([message_id])):
                    yield _read(waiting.pop(message_id), replies[0], time.monotonic() - begin)
            if waiting:
                time.sleep(self._poll_s)
        self._late.update(waiting)
        yield from (Reply(node, None, f"no reply within {deadline_s:g} s") for node in waiting.values())

    def _push(self, frames: Mapping[int, bytes], deadline_s: float) -> dict[str, int]:
        # The same frame becomes the same record, so that SuperLink stores it once for all nodes.
        records = {id(frame): pack(frame) for frame in frames.values()}
        messages = [
            Message(records[id(frame)], node, "train", ttl=deadline_s + TTL_SLACK_S) for node, frame in frames.items()
        ]
        message_ids = list(self._grid.push_messages(messages))
        return {message_id: node for message_id, node in zip(message_ids, frames, strict=False) if message_id}


def _read(node: int, message: Message, seconds: float) -> Reply:
    if message.has_error():
        return Reply(node, None, f"Flower error {message.error.code}: {message.error.reason or 'no reason given'}")
    try:
        return Reply(node, unpack(message.content), seconds=seconds)
    except WireError as error:
        return Reply(node, None, error.message)


class LocalExchange:
    """Sites as functions from frame to frame in this process, called one after the other; node numbers count from 1.

    A function that raises stands for a node that dies; `disconnect` takes a site off the list of nodes.
    """

    def __init__(self, sites: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self._sites = dict(enumerate(sites.values(), start=1))
        self._numbers = {name: number for number, name in enumerate(sites, start=1)}

    def nodes(self) -> list[int]:
        return sorted(self._sites)

    def disconnect(self, name: str) -> None:
        """The site of this name is gone from now on."""
        del self._sites[self._numbers[name]]

    def send(self, frames: Mapping[int, bytes], deadline_s: float) -> Iterator[Reply]:
        del deadline_s  # functions answer at once
        for node, frame in frames.items():
            yield self._call(node, frame)

    def _call(self, node: int, frame: bytes) -> Reply:
        if node not in self._sites:
            return Reply(node, None, "the node is not connected")
        begin = time.monotonic()
        try:
            return Reply(node, self._sites[node](frame), seconds=time.monotonic() - begin)
        except Exception as error:  # noqa: BLE001 a site's own fault, of whatever kind, must not end the run
            return Reply(node, None, f"the site failed: {type(error).__name__}")
