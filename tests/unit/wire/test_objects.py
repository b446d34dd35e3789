"""A message out of its objects: every byte, no more of them in memory than needed, and a stranger's bytes harm nobody."""

import json
import tracemalloc
from collections.abc import Callable

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from fedmed.errors import WireError
from fedmed.wire.channel import join
from fedmed.wire.objects import Unreadable, inflate
from fedmed.wire.record import pack, unpack

MEGABYTE = 1 << 20
LIMIT = 1 << 30


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def objects_of(content: RecordDict) -> tuple[str, dict[str, bytes]]:
    """The message's name, and its objects' bytes by name, as a SuperLink holds them."""
    objects = {name: item.deflate() for name, item in get_all_nested_objects(Message(content, 1, "train")).items()}
    return list(objects)[-1], objects


def peak(call: Callable[[], object]) -> int:
    """The most that `call` holds at once, in bytes, of what Python allocates."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def frame_of(megabytes: int) -> bytes:
    """No two pieces of it are the same."""
    return b"".join(number.to_bytes(8, "big") for number in range(megabytes * MEGABYTE // 8))


def test_every_record_comes_out_as_it_went_in() -> None:
    content = pack(frame_of(12))
    content["config"] = ConfigRecord({"lr": 0.1})
    name, objects = objects_of(content)
    found = inflate(name, objects.__getitem__, LIMIT)
    assert isinstance(found, Message)
    assert unpack(found.content) == unpack(content)
    assert found.content["config"] == content["config"]


def test_an_array_and_one_chunk_are_in_memory_and_no_more() -> None:
    size = 40 * MEGABYTE
    name, objects = objects_of(pack(frame_of(40)))
    held = peak(lambda: inflate(name, lambda own: bytes(bytearray(objects[own])), LIMIT))
    assert size < held < 1.5 * size  # Flower's own function: 2.3 without the chunks, which are here before


def test_a_frame_is_in_memory_once_while_its_pieces_come() -> None:
    size = 40 * MEGABYTE
    held = peak(lambda: join(bytes(MEGABYTE) for _ in range(40)))
    assert size <= held < 1.3 * size


def test_a_message_above_the_limit_is_not_pulled_to_its_end() -> None:
    name, objects = objects_of(pack(frame_of(12)))
    pulled: list[str] = []

    def pull(own: str) -> bytes:
        pulled.append(own)
        return objects[own]

    with pytest.raises(WireError, match=f"more than {MEGABYTE} bytes"):
        inflate(name, pull, MEGABYTE)
    assert len(pulled) < len(objects)


def test_a_chunk_counts_as_often_as_it_is_used() -> None:
    name, objects = objects_of(pack(bytes(100_000)))
    [array] = [own for own in objects if objects[own].startswith(b"Array ")]
    head, _, body = objects[array].partition(HEAD_BODY_DIVIDER)
    told = json.dumps(json.loads(body) | {"arraychunk_ids": [0] * 1000}).encode()
    objects[array] = head.rpartition(b" ")[0] + b" %d" % len(told) + HEAD_BODY_DIVIDER + told
    with pytest.raises(WireError, match="more than 1000000 bytes"):
        inflate(name, objects.__getitem__, 1_000_000)


@pytest.mark.parametrize("bad", [b"", b"no object", b"Array  2\x00{}", b"Message a,b 1\x00x"])
@pytest.mark.parametrize("place", range(5))
def test_bytes_that_are_no_object_are_unreadable_wherever_they_are(bad: bytes, place: int) -> None:
    name, objects = objects_of(pack(b"frame"))
    objects[list(objects)[place]] = bad
    objects |= {"a": b"RecordDict a 2\x00{}", "b": b"RecordDict b 2\x00{}"}  # each its own child
    with pytest.raises(Unreadable, match="cannot be read"):
        inflate(name, objects.__getitem__, LIMIT)


def test_what_the_pull_raises_is_raised() -> None:
    name, _ = objects_of(pack(b"frame"))

    def away(own: str) -> bytes:
        raise TimeoutError(own)

    with pytest.raises(TimeoutError):
        inflate(name, away, LIMIT)
