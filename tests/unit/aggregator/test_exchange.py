"""Exactly one reply per node, through a Grid in memory and through functions."""

import gc
import json
import threading
import time
import tracemalloc

import pytest
from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid

from aggregator.rounds.exchange import FlowerExchange, LocalExchange
from aggregator.superlink import lean_grid
from aggregator.superlink.lean_grid import lean_pulls, lean_pushes
from fedmed.errors import FederationError, WireError
from fedmed.wire.record import pack, release, unpack


class MemoryGrid(Grid):
    """A Grid whose nodes answer through `answers`: node -> frame, Error, or None for never."""

    def __init__(self, answers: dict[int, bytes | Error | None]) -> None:
        self.answers = answers
        self.sent: dict[str, Message] = {}
        self.pulled: list[int] = []
        self.given: list[Message] = []
        self.offline: Error | None = None

    def set_run(self, run):
        del run

    @property
    def run(self):
        return None

    def create_message(self, *args, **kwargs):
        return Message(*args, **kwargs)

    def get_node_ids(self):
        return list(self.answers)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            key = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = key
            self.sent[key] = message
            ids.append(key if message.metadata.dst_node_id != 99 else None)
        return ids

    def pull_messages(self, message_ids):
        (key,) = message_ids
        sent = self.sent[key]
        answer = self.answers.get(sent.metadata.dst_node_id, self.offline)
        if answer is None:
            return []
        self.pulled.append(sent.metadata.dst_node_id)
        content = answer if isinstance(answer, Error) else pack(answer)
        self.given.append(Message(content, reply_to=sent))
        return self.given[-1:]

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("the exchange pulls replies itself")


@pytest.fixture(autouse=True)
def identity():
    """What flwr-serverapp sets before it calls an app; messages cannot be made without it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def test_pack_and_unpack_keep_every_byte():
    frame = bytes(range(256)) * 9
    assert unpack(pack(frame)) == frame
    assert unpack(pack(b"")) == b""


def test_replies_errors_and_silence():
    grid = MemoryGrid({1: b"one", 2: Error(5, "Node Unavailable"), 3: None, 99: b"never pushed"})
    exchange = FlowerExchange(grid)
    frame = b"task"
    replies = {reply.node: reply for reply in exchange.send(dict.fromkeys([1, 2, 3, 99], frame), deadline_s=0.1)}
    assert replies[1].frame == b"one"
    assert "Node Unavailable" in replies[2].error
    assert replies[3].error == "no reply within 0.1 s"
    assert "did not take the task" in replies[99].error
    assert len(replies) == 4
    assert {id(message.content) for message in grid.sent.values()} == {id(grid.sent["m0"].content)}


def test_a_node_that_owes_an_answer_is_not_given_another_task():
    grid = MemoryGrid({1: b"one", 2: None})
    exchange = FlowerExchange(grid)
    assert exchange.nodes() == [1, 2]
    list(exchange.send({1: b"t", 2: b"t"}, deadline_s=0.05))
    assert exchange.nodes() == [1]
    assert exchange.late() == []
    grid.answers[2] = b"late"
    assert exchange.nodes() == [1, 2]
    assert (exchange.late(), exchange.late()) == ([2], [])
    assert not grid.given[-1].content.array_records["fedmed"]
    assert [reply.frame for reply in exchange.send({2: b"next"}, deadline_s=0.05)] == [b"late"]


def test_replies_are_handed_over_before_the_others_have_come():
    grid = MemoryGrid({1: None, 2: b"two"})
    stream = FlowerExchange(grid).send({1: b"t", 2: b"t"}, deadline_s=30.0)
    begin = time.monotonic()
    assert next(stream).frame == b"two"
    assert time.monotonic() - begin < 5.0
    grid.answers[1] = b"one"
    assert next(stream).frame == b"one"


def test_a_node_that_goes_offline_is_told_and_not_given_up_at_once():
    """Flower forgets an answer for good when it is asked for while the node is offline: so it is not asked."""
    grid = MemoryGrid({1: None, 2: b"two"})
    told: list[tuple[int, bool]] = []
    stream = FlowerExchange(grid, patience_s=60.0).send({1: b"t", 2: b"t"}, 30.0, lambda *change: told.append(change))
    assert next(stream).frame == b"two"
    del grid.answers[1]  # offline: Flower would answer with an error

    def come_back():
        assert (1, False) in told
        assert grid.pulled == [2]
        grid.answers[1] = b"one"

    timer = threading.Timer(0.3, come_back)
    timer.start()
    assert next(stream).frame == b"one"
    timer.join()
    assert told == [(1, False), (1, True)]


def test_a_node_that_stays_offline_is_given_up():
    grid = MemoryGrid({2: b"two"})
    grid.offline = Error(3, "Node Unavailable")
    replies = {reply.node: reply for reply in FlowerExchange(grid, patience_s=0.2).send({1: b"t", 2: b"t"}, 30.0)}
    assert replies[2].frame == b"two"
    assert "Node Unavailable" in replies[1].error


class Cupboard:
    """Objects as the SuperLink gives them out; those in `awaited` are announced and never come."""

    def __init__(self, reply: Message) -> None:
        self.objects = {name: item.deflate() for name, item in get_all_nested_objects(reply).items()}
        self.names = list(self.objects)
        self.awaited: set[str] = set()
        self.pulled = 0

    def give(self, name: str) -> bytes:
        if name in self.awaited:
            raise ObjectUnavailableError(name)
        self.pulled += 1
        return self.objects[name]

    def fetch(self, left_s: float = 5.0) -> Message:
        """As the grid does it."""
        with lean_pulls(left_s):
            contents = http_grid.pull_objects(object_ids=self.names, pull_object_fn=self.give)
            return http_grid.inflate_object_from_contents(self.names[-1], contents)


def test_a_reply_is_pulled_object_by_object_and_flowers_functions_come_back():
    flowers = http_grid.pull_objects, http_grid.inflate_object_from_contents
    frame = bytes(range(256)) * 50_000  # 13 MB: three chunks, two of them the same
    cupboard = Cupboard(Message(pack(frame), 1, "train"))
    assert unpack(cupboard.fetch().content) == frame
    assert cupboard.pulled == len(cupboard.objects) + 1
    assert (http_grid.pull_objects, http_grid.inflate_object_from_contents) == flowers


def test_a_reply_that_is_announced_and_not_sent_is_waited_for_no_longer_than_asked():
    cupboard = Cupboard(Message(pack(b"frame"), 1, "train"))
    cupboard.awaited = {cupboard.names[0]}
    begin = time.monotonic()
    with pytest.raises(ObjectPullError, match="timeout"):
        cupboard.fetch(left_s=0.3)
    assert 0.2 < time.monotonic() - begin < 3.0


def test_a_reply_that_comes_to_more_than_a_frame_is_this_sites_fault_alone(monkeypatch):
    """A site says how often a chunk is in its array: a few megabytes on the wire may mean any number in memory."""
    cupboard = Cupboard(Message(pack(bytes(1000)), 1, "train"))
    (array,) = [name for name in cupboard.names if cupboard.objects[name].startswith(b"Array ")]
    monkeypatch.setattr(lean_grid, "MAX_FRAME_BYTES", 100_000)
    head, divider, body = cupboard.objects[array].partition(HEAD_BODY_DIVIDER)
    told = json.loads(body) | {"arraychunk_ids": [0] * 1000}
    cupboard.objects[array] = head + divider + json.dumps(told).encode()
    with pytest.raises(ObjectPullError, match="more than 100000 bytes"):
        cupboard.fetch()
    assert cupboard.pulled < 110


@pytest.mark.parametrize("place", range(5))
def test_a_reply_that_is_no_message_is_this_sites_fault_alone(place):
    cupboard = Cupboard(Message(pack(b"frame"), 1, "train"))
    cupboard.objects[cupboard.names[place]] = b"no object of Flower's"
    with pytest.raises(ObjectPullError, match="cannot be read"):
        cupboard.fetch()


def test_a_reply_that_is_another_object_is_this_sites_fault_alone():
    cupboard = Cupboard(Message(pack(b"frame"), 1, "train"))
    cupboard.names.pop()
    with pytest.raises(ObjectPullError, match="RecordDict, expected a Message"):
        cupboard.fetch()


def test_what_is_asked_for_is_pushed_one_object_after_the_other():
    """Flower's own has the bytes of all objects before the first push; its client leaves each in a cycle of references."""
    frame = b"".join(number.to_bytes(4, "big") for number in range(10 << 20))  # 40 MiB, eight chunks
    objects = get_all_nested_objects(Message(pack(frame), 1, "train"))
    asked = set(list(objects)[1:])
    pushed: set[str] = set()
    held: list[int] = []

    def push(name: str, content: bytes) -> None:
        pushed.add(name)
        cycle: list[object] = [content]
        cycle.append(cycle)
        held.append(tracemalloc.get_traced_memory()[0])

    gc.disable()
    tracemalloc.start()
    try:
        with lean_pushes():
            http_grid.push_objects(dict(objects), push_object_fn=push, object_ids_to_push=asked)
    finally:
        tracemalloc.stop()
        gc.enable()
    assert pushed == asked
    assert max(held) < 11 << 20


@pytest.mark.parametrize("name", ["pull_objects", "inflate_object_from_contents", "push_objects"])
def test_another_flower_is_named(monkeypatch, name):
    monkeypatch.delattr(http_grid, name)
    with (
        pytest.raises(FederationError, match=rf"no {name}, expected Flower 1\.39"),
        lean_pushes(),
        lean_pulls(left_s=1.0),
    ):
        pass


def test_local_exchange():
    exchange = LocalExchange({"a": lambda frame: frame + b"!", "b": lambda frame: frame[10]})
    assert exchange.nodes() == [1, 2]
    good, bad = exchange.send({1: b"x", 2: b"x"}, deadline_s=1.0)
    assert good.frame == b"x!"
    assert bad.frame is None
    assert bad.error == "the site failed: IndexError"
    exchange.disconnect("a")
    assert exchange.nodes() == [2]


def test_no_frame_stays_in_the_records_that_refer_to_themselves():
    content = pack(b"frame")
    assert unpack(content) == b"frame"
    release(content)
    with pytest.raises(WireError, match="holds no FedMed frame"):
        unpack(content)
    grid = MemoryGrid({1: b"one", 2: b"two"})
    frames = [reply.frame for reply in FlowerExchange(grid).send({1: b"ask", 2: b"ask"}, 1.0)]
    assert frames == [b"one", b"two"]
    assert not any(message.content.array_records["fedmed"] for message in grid.sent.values())
