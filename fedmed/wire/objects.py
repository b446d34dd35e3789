"""A Flower message out of its objects (flwr 1.39), an array's bytes in memory once. Used by aggregator and connector.

    inflate(name, pull, limit):  Message -> RecordDict -> ArrayRecord -> Array, and each of its chunks in turn is added to its bytes

An object's name is a hash; `pull` gives its bytes. Flower's own function has all chunks, the buffer that they are put together in
and a copy of that at once, which is three times the array, and whoever sends a message decides how often a chunk is in an array.

| what is pulled                                               | what happens                                   |
| ------------------------------------------------------------ | ---------------------------------------------- |
| more than `limit` bytes, a chunk as often as it is used      | WireError; no more of it is pulled             |
| bytes that are no object of Flower's, or do not fit together | Unreadable                                     |
| whatever `pull` raises                                       | is raised                                      |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

from flwr.app import Array
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedmed.errors import WireError

Pull = Callable[[str], bytes]


class Unreadable(WireError):
    """What was pulled is no message of Flower's."""


def inflate(name: str, pull: Pull, limit: int) -> InflatableObject:
    """The object of this name with everything below it. Raises: see the module's table."""
    take = _limited(pull, limit)
    contents: dict[str, bytes] = {}
    arrays: dict[str, InflatableObject] = {}
    names = [name]
    while names:
        if (own := names.pop()) in contents or own in arrays:
            continue
        content = take(own)
        with _reading():
            kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            arrays[own] = _array(content, children, take)
        else:
            contents[own] = content
            names += children
    with _reading():
        return inflate_object_from_contents(name, contents, objects=arrays)


def _limited(pull: Pull, limit: int) -> Pull:
    total = 0

    def take(name: str) -> bytes:
        nonlocal total
        content = pull(name)
        total += len(content)
        if total > limit:
            raise WireError(f"a message of more than {limit} bytes")
        return content

    return take


def _array(content: bytes, chunks: Sequence[str], take: Pull) -> Array:
    with _reading():
        told = json.loads(get_object_body(content, Array))
        names = [chunks[place] for place in told["arraychunk_ids"]]
        array = Array(told["dtype"], tuple(told["shape"]), told["stype"], b"")
    data = BytesIO()
    for name in names:
        chunk = take(name)
        with _reading():
            data.write(get_object_body(chunk, ArrayChunk))
    array.data = data.getvalue()  # the buffer itself, not a copy
    return array


@contextmanager
def _reading() -> Iterator[None]:
    """Whatever a stranger's bytes do to a parser, they are no message."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  of whatever kind, it comes from the sender
        raise Unreadable(f"a message's objects cannot be read ({type(error).__name__})") from None
