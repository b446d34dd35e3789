"""Exactly one reply per node, through a Grid in memory and through functions."""

import threading
import time

import pytest
from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid

from aggregator.rounds.exchange import FlowerExchange, LocalExchange
from aggregator.superlink.pulling import quick_pulls
from fedmed.errors import FederationError, WireError
from fedmed.wire.record import pack, release, unpack


class MemoryGrid(Grid):
    """A Grid whose nodes answer through `answers`: node -> frame, Error, or None for never."""

    def __init__(self, answers: dict[int, bytes | Error | None]) -> None:
        self.answers = answers
        self.sent: dict[str, Message] = {}
        self.pulled: list[int] = []
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
        return [Message(content, reply_to=sent)]

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


def test_a_reply_that_is_announced_and_not_sent_is_waited_for_no_longer_than_asked(monkeypatch):
    seen = {}
    monkeypatch.setattr(http_grid, "pull_objects", lambda **options: seen.update(options))
    with quick_pulls(left_s=7.0):
        http_grid.pull_objects(object_ids=["a"], pull_object_fn=None)
    assert seen["max_time"] == 7.0
    assert seen["initial_backoff"] < 0.1
    with quick_pulls(left_s=1.0):
        pass
    seen.clear()
    http_grid.pull_objects(object_ids=["a"])
    assert seen == {"object_ids": ["a"]}


def test_another_flower_is_named(monkeypatch):
    monkeypatch.delattr(http_grid, "pull_objects")
    with pytest.raises(FederationError, match=r"expected Flower 1\.39"), quick_pulls(left_s=1.0):
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
