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
| a node goes offline                         | `tell`, at once; what it was sent stays open for PATIENCE_S     |
| it comes back before                        | `tell`, at once; its answer counts                              |
| it does not, or its relay raises            | Reply with Flower's reason                                      |
| an answer that is announced and not sent    | waited for up to the deadline, then Reply with Flower's reason  |
| no answer at the deadline                   | Reply with an error; Flower drops the task when it is not begun |
| the answer comes after the deadline         | fetched, thrown away, told by `late`                            |
| a node still owes the answer to an old task | not among `nodes()`: nothing queues up behind a slow site       |

How long a node took is measured here, from sending to arrival: sites do not say how long they trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from aggregator.superlink.lean_grid import lean_pulls, lean_pushes
from fedmed.errors import WireError
from fedmed.wire.record import pack, release, unpack

# Answers are looked for after a fiftieth of the time that they have taken already: a round of seconds loses milliseconds.
SHORTEST_S, LONGEST_S, SHARE = 0.05, 0.5, 0.02
# Looking is a request a site: with many sites it rests so many times as long as it took.
REST = 2.0
# Flower gives up a node's answer for good once it is asked after while the node is offline. A network may be away for a while.
PATIENCE_S = 30.0
# Flower stops delivering a message after its time to live; a site that began just before the deadline may still answer.
TTL_SLACK_S = 30.0
# For the bytes of an answer that nobody waits for any more.
LATE_S = 1.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back from one node `seconds` after it was sent to: its frame, or the reason why there is none."""

    node: int
    frame: bytes | None
    error: str = ""
    seconds: float = 0.0


Tell = Callable[[int, bool], None]


def _tell_nobody(node: int, online: bool) -> None:
    """For callers who do not watch."""


class Exchange(Protocol):
    """Carries frames to nodes. Nodes are numbers that stay the same while a node is connected."""

    def nodes(self) -> list[int]:
        """The connected nodes that owe no answer, in ascending order."""

    def online(self) -> set[int]:
        """The connected nodes, whatever they owe. May be called from another thread."""

    def late(self) -> list[int]:
        """Nodes whose answer came after its deadline and was thrown away by `nodes()`; each answer is told once."""

    def send(self, frames: Mapping[int, bytes], deadline_s: float, tell: Tell = _tell_nobody) -> Iterator[Reply]:
        """Sends each node its frame; yields exactly one Reply per node, in the order of arrival.

        Args:
            tell: called with a node that has not answered yet and False when it goes offline, True when it is back.
        """


class FlowerExchange:
    """The exchange over Flower's Grid. Replies are pulled one by one, so that one frame is in memory at a time."""

    def __init__(self, grid: Grid, patience_s: float = PATIENCE_S) -> None:
        self._grid = grid
        self._patience_s = patience_s
        self._late: dict[str, int] = {}  # message id -> node, for answers that missed their deadline
        self._came_late: list[int] = []

    def nodes(self) -> list[int]:
        for message_id in list(self._late):
            if message := self._pull(message_id, LATE_S):
                self._came_late.append(self._late.pop(message_id))
                if message.has_content():
                    release(message.content)
        return sorted(self.online() - set(self._late.values()))

    def online(self) -> set[int]:
        return set(self._grid.get_node_ids())

    def late(self) -> list[int]:
        came, self._came_late = self._came_late, []
        return came

    def send(self, frames: Mapping[int, bytes], deadline_s: float, tell: Tell = _tell_nobody) -> Iterator[Reply]:
        begin = time.monotonic()
        end = begin + deadline_s
        waiting = self._push(frames, deadline_s)
        refused = set(frames) - {*waiting.values()}
        del frames  # the SuperLink has them: the memory is the replies'
        yield from (Reply(node, None, "the SuperLink did not take the task") for node in refused)
        gone: dict[int, float] = {}  # node -> when it went offline
        while waiting and (now := time.monotonic()) < end:
            self._look(waiting.values(), gone, now, tell)
            looking_s = time.monotonic() - now
            for message_id, node in list(waiting.items()):
                if now - gone.get(node, -math.inf) < self._patience_s:
                    continue
                asked = time.monotonic()
                if message := self._pull(message_id, end - asked):
                    del waiting[message_id]
                    reply = _read(node, message, time.monotonic() - begin)
                    del message
                    yield reply
                    del reply  # before the next one comes
                else:
                    looking_s += time.monotonic() - asked
            if waiting:
                share_s = min(max(SHARE * (now - begin), SHORTEST_S), LONGEST_S)
                time.sleep(max(share_s, REST * looking_s))
        self._late.update(waiting)
        yield from (Reply(node, None, f"no reply within {deadline_s:g} s") for node in waiting.values())

    def _look(self, nodes: Iterable[int], gone: dict[int, float], now: float, tell: Tell) -> None:
        """Notes who is offline since when in `gone`."""
        online = self.online()
        for node in nodes:
            if node in online and gone.pop(node, None) is not None:
                tell(node, True)
            elif node not in online and node not in gone:
                gone[node] = now
                tell(node, False)

    def _pull(self, message_id: str, left_s: float) -> Message | None:
        """The reply to one message, if there is one: asking for several at once would hold them all in memory."""
        with lean_pulls(left_s):
            return next(iter(self._grid.pull_messages([message_id])), None)

    def _push(self, frames: Mapping[int, bytes], deadline_s: float) -> dict[str, int]:
        # The same frame becomes the same record, so that SuperLink stores it once for all nodes.
        records = {id(frame): pack(frame) for frame in frames.values()}
        messages = [
            Message(records[id(frame)], node, "train", ttl=deadline_s + TTL_SLACK_S) for node, frame in frames.items()
        ]
        with lean_pushes():
            message_ids = list(self._grid.push_messages(messages))
        for record in records.values():
            release(record)
        return {message_id: node for message_id, node in zip(message_ids, frames, strict=False) if message_id}


def _read(node: int, message: Message, seconds: float) -> Reply:
    if message.has_error():
        return Reply(node, None, f"Flower error {message.error.code}: {message.error.reason or 'no reason given'}")
    try:
        return Reply(node, unpack(message.content), seconds=seconds)
    except WireError as error:
        return Reply(node, None, error.message)
    finally:
        release(message.content)


class LocalExchange:
    """Sites as functions from frame to frame in this process, called one after the other; node numbers count from 1.

    A function that raises stands for a node that dies; `disconnect` takes a site off the list of nodes.
    """

    def __init__(self, sites: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self._sites = dict(enumerate(sites.values(), start=1))
        self._numbers = {name: number for number, name in enumerate(sites, start=1)}

    def nodes(self) -> list[int]:
        return sorted(self._sites)

    def online(self) -> set[int]:
        return set(self._sites)

    def late(self) -> list[int]:
        return []

    def disconnect(self, name: str) -> None:
        """The site of this name is gone from now on."""
        del self._sites[self._numbers[name]]

    def send(self, frames: Mapping[int, bytes], deadline_s: float, tell: Tell = _tell_nobody) -> Iterator[Reply]:
        del deadline_s, tell  # functions answer at once
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
