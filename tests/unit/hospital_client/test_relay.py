"""The relay: passes frames through, answers with a Refusal where the daemon cannot, and imports no torch."""

import subprocess
import sys
import threading
import tracemalloc
from concurrent import futures

import grpc
import pytest
from flwr.app import RecordDict

from fedmed.messages import DescribeTask, Refusal, decode, encode
from fedmed.wire import site_pb2_grpc
from fedmed.wire.channel import chunks, join
from fedmed.wire.record import pack
from hospital_client.app import SOCKET_KEY, answer


@pytest.fixture
def echo_socket(tmp_path_factory):
    """A daemon that answers each frame with the same bytes, reversed."""
    path = tmp_path_factory.mktemp("s") / "e.sock"

    class Echo(site_pb2_grpc.SiteServicer):
        def Handle(self, request_iterator, context):
            yield from chunks(join(piece.data for piece in request_iterator)[::-1])

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    site_pb2_grpc.add_SiteServicer_to_server(Echo(), server)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    yield str(path)
    server.stop(0).wait()


def refusal(frame: bytes) -> Refusal:
    message = decode(frame)[0]
    assert isinstance(message, Refusal)
    return message


def test_bytes_pass_through_unread(echo_socket):
    frame = b"no FedMed frame at all" * 100_000
    assert answer(pack(frame), {SOCKET_KEY: echo_socket}, 10.0) == frame[::-1]


def test_while_the_daemon_works_the_relay_holds_nothing_of_the_frame(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "m.sock"
    held = []

    class Trains(site_pb2_grpc.SiteServicer):
        def Handle(self, request_iterator, context):
            size = sum(len(piece.data) for piece in request_iterator)
            held.append(tracemalloc.get_traced_memory()[0])
            yield from chunks(b"%d" % size)

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    site_pb2_grpc.add_SiteServicer_to_server(Trains(), server)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    tracemalloc.start()
    try:
        got = answer(pack(bytes(64 << 20)), {SOCKET_KEY: str(path)}, 60.0)
    finally:
        tracemalloc.stop()
        server.stop(0).wait()
    assert got == b"%d" % (64 << 20)
    assert held[0] < 8 << 20


def test_no_daemon_is_a_refusal_that_may_be_retried(tmp_path):
    frame = encode(DescribeTask(run="r1"))
    got = refusal(answer(pack(frame), {SOCKET_KEY: str(tmp_path / "none.sock")}, 5.0))
    assert (got.run, got.code, got.retry) == ("r1", "federation", True)
    assert "daemon" in got.message


@pytest.mark.parametrize("config", [{}, {SOCKET_KEY: 7}, {SOCKET_KEY: ""}])
def test_a_missing_socket_in_the_node_config_is_named(config):
    got = refusal(answer(pack(encode(DescribeTask(run="r1"))), config, 5.0))
    assert got.code == "federation"
    assert SOCKET_KEY in got.message


def test_a_message_without_a_frame_is_refused(tmp_path):
    got = refusal(answer(RecordDict(), {SOCKET_KEY: str(tmp_path / "none.sock")}, 5.0))
    assert (got.code, got.retry) == ("wire", False)


def test_a_daemon_that_does_not_answer_in_time(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "slow.sock"
    release = threading.Event()

    class Slow(site_pb2_grpc.SiteServicer):
        def Handle(self, request_iterator, context):
            release.wait(20.0)
            yield from chunks(b"")

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    site_pb2_grpc.add_SiteServicer_to_server(Slow(), server)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    got = refusal(answer(pack(encode(DescribeTask(run="r1"))), {SOCKET_KEY: str(path)}, 0.5))
    release.set()
    server.stop(0).wait()
    assert got.retry
    assert "within 0.5 s" in got.message


def test_importing_the_relay_imports_neither_torch_nor_transformers():
    code = "import hospital_client.app, sys; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
