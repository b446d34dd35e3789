"""The connector's loop at a SuperLink in memory: what it does when things come and go, and what it says."""

import json
import socket
import threading
from pathlib import Path

import grpc
import pytest
from flwr.app import RecordDict
from typer.testing import CliRunner

from fedmed.errors import FedMedError, WireError
from fedmed.messages import DescribeTask, Refusal, decode, encode
from fedmed.wire.record import pack, unpack
from hospital_client import connect
from hospital_client.cli import app
from hospital_client.connect import Connector, Watch
from hospital_client.link import (
    Away,
    Forgotten,
    IntervalRefused,
    NotActivated,
    NotAdmitted,
    RunOver,
    explain,
)


class FakeDelivery:
    """A message with the content `content`, or a fault; remembers the reply."""

    left_s = 5.0

    def __init__(self, content: RecordDict | Exception) -> None:
        self.content = content
        self.replied = threading.Event()
        self.frame = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.replied.set()

    def fetch(self):
        if isinstance(self.content, Exception):
            raise self.content
        return self.content

    def reply(self, content):
        self.frame = unpack(content)


class FakeNode:
    """A SuperLink that does what `script` says at each heartbeat: nothing, or the fault to raise."""

    node_id = 7

    def __init__(self, script: list[Exception | None], deliveries: list[FakeDelivery] | None = None) -> None:
        self.script, self.deliveries = script, deliveries or []
        self.calls: list[str] = []
        self.joined = False

    def join(self):
        self.calls.append("join")
        self.joined = True

    def keep_alive(self):
        if self.script and (fault := self.script.pop(0)) is not None:
            raise fault

    def next_message(self):
        return self.deliveries.pop(0) if self.deliveries else None

    def leave(self, *, for_good):
        if self.joined:
            self.calls.append("leave for good" if for_good else "leave")
        self.joined = False

    def forget(self):
        self.calls.append("forget")
        self.joined = False

    def close(self):
        self.calls.append("close")


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory):
    """A socket that somebody listens on."""
    path = tmp_path_factory.mktemp("s") / "d.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield path


def steps(node: FakeNode, path: Path, count: int) -> list[str]:
    """The states told in `count` turns of the loop, which does not wait in between."""
    said: list[str] = []
    connector = Connector(node, path, lambda state, text: said.append(state))
    waits = []

    class Stop:
        def wait(self, seconds):
            waits.append(seconds)
            return len(waits) >= count

    connector.run(Stop())
    assert all(0 <= seconds <= 60 for seconds in waits)
    return said


def test_it_joins_tells_it_once_and_leaves_at_the_end(daemon):
    node = FakeNode([])
    assert steps(node, daemon, 5) == ["connected", "stopped"]
    assert node.calls == ["join", "leave for good", "close"]


def test_a_superlink_that_is_away_is_told_once_and_its_return_too(daemon):
    node = FakeNode([None, Away("one"), Away("two"), Away("three"), None])
    assert steps(node, daemon, 6) == ["connected", "away", "connected", "stopped"]
    assert node.calls.count("join") == 1  # it has not forgotten the node


def test_a_superlink_that_was_started_anew_is_joined_again(daemon):
    node = FakeNode([None, Forgotten("who?")])
    assert steps(node, daemon, 4) == ["connected", "forgotten", "connected", "stopped"]
    assert node.calls[:3] == ["join", "forget", "join"]


def test_another_reason_for_not_being_admitted_is_told_again(daemon):
    node = FakeNode([NotAdmitted("key"), NotAdmitted("key"), NotAdmitted("certificate"), None])
    assert steps(node, daemon, 4) == ["refused", "refused", "connected", "stopped"]


def test_the_same_reason_a_minute_later_is_not_told_again(daemon):
    node = FakeNode([NotAdmitted("ended (the clock says 10:59)"), NotAdmitted("ended (the clock says 11:00)"), None])
    assert steps(node, daemon, 3) == ["refused", "connected", "stopped"]


def test_without_a_daemon_the_site_is_not_in_the_federation(daemon, monkeypatch):
    monkeypatch.setattr(connect, "LOOK_S", 0.0)
    monkeypatch.setattr(connect, "GRACE_S", 0.0)
    node = FakeNode([])
    assert steps(node, daemon.with_name("none.sock"), 3) == ["offline", "stopped"]
    assert node.calls == ["close"]


def test_a_daemon_that_is_back_soon_was_not_gone(daemon, monkeypatch):
    monkeypatch.setattr(connect, "LOOK_S", 0.0)
    watch = Watch(daemon)
    assert watch.there()
    daemon.unlink()
    assert watch.there()
    monkeypatch.setattr(connect, "GRACE_S", 0.0)
    assert not watch.there()


def refused(delivery: FakeDelivery, path: Path) -> Refusal:
    steps(FakeNode([], [delivery]), path, 1)
    assert delivery.replied.wait(10.0)
    message = decode(delivery.frame)[0]
    assert isinstance(message, Refusal)
    return message


def test_a_message_of_another_app_is_refused(daemon):
    got = refused(FakeDelivery(RecordDict()), daemon)
    assert (got.code, got.retry) == ("wire", False)


def test_a_message_that_is_too_large_is_refused(daemon):
    assert refused(FakeDelivery(WireError("too large")), daemon).code == "wire"


def test_no_answer_from_the_daemon_is_a_refusal_that_may_be_retried(daemon):
    daemon_gone = FakeDelivery(pack(encode(DescribeTask(run="r1"))))
    daemon_gone.left_s = 0.5  # somebody listens, and does not answer
    got = refused(daemon_gone, daemon)
    assert (got.run, got.code, got.retry) == ("r1", "federation", True)


@pytest.mark.parametrize("fault", [RunOver("over"), Forgotten("who?"), ValueError("broken")])
def test_a_message_that_nobody_waits_for_ends_nothing(daemon, fault):
    deliveries = [FakeDelivery(fault), FakeDelivery(RecordDict())]
    assert steps(FakeNode([], list(deliveries)), daemon, 3) == ["connected", "stopped"]
    assert all(delivery.replied.wait(10.0) for delivery in deliveries)
    assert decode(deliveries[1].frame)[0].code == "wire"


class Failed(grpc.RpcError):
    def __init__(self, code, details):
        self._code, self._details = code, details

    def code(self):
        return self._code

    def details(self):
        return self._details


def flower(code: int) -> str:
    return json.dumps({"code": code, "public_message": "no", "public_details": None})


@pytest.mark.parametrize(
    ("code", "details", "expected", "word"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses", Away, "UNAVAILABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", Away, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.UNKNOWN, "Exception calling application", Away, "UNKNOWN"),
        (
            grpc.StatusCode.UNAVAILABLE,
            "Ssl handshake failed: SSL_ERROR_SSL: OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: self signed",
            NotAdmitted,
            "CERTIFICATE_VERIFY_FAILED",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "Ssl handshake failed: OPENSSL_internal:WRONG_VERSION_NUMBER",
            NotAdmitted,
            "no TLS",
        ),
        (grpc.StatusCode.UNAUTHENTICATED, "Invalid timestamp", NotAdmitted, "clock"),
        (grpc.StatusCode.UNAUTHENTICATED, "Invalid node ID", Forgotten, "does not know"),
        (grpc.StatusCode.FAILED_PRECONDITION, flower(2001), NotAdmitted, "key"),
        (grpc.StatusCode.INVALID_ARGUMENT, flower(2003), IntervalRefused, "no"),
        (grpc.StatusCode.FAILED_PRECONDITION, flower(2004), NotActivated, "key"),
        (grpc.StatusCode.PERMISSION_DENIED, flower(2007), RunOver, "ended"),
        (grpc.StatusCode.INTERNAL, flower(9999), Away, "no"),
    ],
)
def test_what_a_failed_call_means(code, details, expected, word):
    error = explain(Failed(code, details), "hub.example:9092")
    assert type(error) is expected
    assert isinstance(error, FedMedError)
    assert word in error.message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--superlink", "hub.example:9092"], "expected --root-certificates"),
        (["--superlink", "hub.example"], "expected HOST:PORT"),
        (["--superlink", "127.0.0.1:1", "--insecure", "--root-certificates", "ca.pem"], "one of the two"),
        (["--superlink", "127.0.0.1:1", "--node-key", "k"], "keys need TLS"),
        (["--superlink", "hub.example:1", "--root-certificates", "ca.pem"], "No such file"),
        (["--insecure"], "go with --superlink"),
        ([], "joined no consortium"),
    ],
)
def test_a_users_mistake_is_named(tmp_path, options, words):
    done = CliRunner().invoke(app, ["connect", str(tmp_path), *options])
    assert isinstance(done.exception, FedMedError)
    assert words in done.exception.message
