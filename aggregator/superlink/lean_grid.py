"""How Flower's grid moves a message's objects: one in memory at a time, and replies for as long as the exchange can wait.

    with lean_pushes():
        ids = grid.push_messages(messages)
    with lean_pulls(left_s=deadline - now):
        replies = grid.pull_messages([message_id])

Flower 1.39 turns all objects into bytes before the first is sent: one more copy of the adapter. It has a reply three times in
memory while it puts it together; fedmed.wire.objects does that here, as the bytes come. And a site announces its reply first and
sends the bytes then: Flower looks for them after 1 s, then 2, 4, 8, 10 s, for up to two hours, whatever the caller's deadline.

| a reply's bytes                                       | what the grid makes of it         |
| ----------------------------------------------------- | --------------------------------- |
| do not come in time                                   | a message with Flower's error     |
| are more than a frame may have, or no message at all  | the same: this site's fault alone |

What is replaced are functions that the grid calls. Not for use from two threads.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import InflatableObject
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.superlink.grid import http_grid

from fedmed.errors import FederationError, WireError
from fedmed.wire.channel import MAX_FRAME_BYTES
from fedmed.wire.objects import inflate

FIRST_S, LONGEST_S = 0.02, 0.5
# Each request of Flower's HTTP client, with the object in it, ends as a cycle of references: the generation that it is found in.
YOUNG = 1
_PUSH, _PULL, _INFLATE = "push_objects", "pull_objects", "inflate_object_from_contents"


@contextmanager
def lean_pushes() -> Iterator[None]:
    """Inside the block, objects are pushed one after the other. Raises FederationError for another release of Flower."""
    with _replaced({_PUSH: _push_in_turn}):
        yield


@contextmanager
def lean_pulls(left_s: float) -> Iterator[None]:
    """Inside the block, a reply's bytes are looked for often, and no longer than `left_s`: then Flower makes it an error.

    Raises FederationError for another release of Flower.
    """
    end = time.monotonic() + left_s
    pull = partial(_pull_message, _flowers(_PULL), end)
    with _replaced({_PULL: pull, _INFLATE: lambda name, pulled: pulled.pop(name)}):
        yield


def _flowers(name: str) -> Any:
    """What the grid calls by this name. Raises FederationError when there is nothing."""
    if not hasattr(http_grid, name):
        raise FederationError(f"{http_grid.__name__} has no {name}, expected Flower 1.39", "install the pinned flwr")
    return getattr(http_grid, name)


@contextmanager
def _replaced(ours: dict[str, Callable[..., Any]]) -> Iterator[None]:
    originals = {name: _flowers(name) for name in ours}
    try:
        for name, function in ours.items():
            setattr(http_grid, name, function)
        yield
    finally:
        for name, original in originals.items():
            setattr(http_grid, name, original)


def _push_in_turn(
    objects: dict[str, InflatableObject], push_object_fn: Callable[[str, bytes], None], object_ids_to_push: set[str]
) -> None:
    for name, item in objects.items():
        if name in object_ids_to_push:
            push_object_fn(name, item.deflate())
            gc.collect(YOUNG)


def _pull_message(
    pull_objects: Callable[..., dict[str, bytes]],
    end: float,
    object_ids: Sequence[str],
    pull_object_fn: Callable[[str], bytes],
) -> dict[str, Message]:
    """The message by its name, which is the last, in place of the contents of its objects. Raises ObjectPullError."""

    def pull(name: str) -> bytes:
        left_s = max(0.0, end - time.monotonic())
        waits = {"initial_backoff": FIRST_S, "backoff_cap": LONGEST_S, "max_time": left_s}
        gc.collect(YOUNG)
        return pull_objects(object_ids=[name], pull_object_fn=pull_object_fn, max_tries_per_object=None, **waits)[name]

    name = object_ids[-1]
    try:
        found = inflate(name, pull, MAX_FRAME_BYTES)
    except WireError as error:
        raise ObjectPullError(name, error.message) from None
    if not isinstance(found, Message):
        raise ObjectPullError(name, f"it is a {type(found).__name__}, expected a Message")
    return {name: found}
