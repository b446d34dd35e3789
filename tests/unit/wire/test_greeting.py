"""The greeting over real gRPC: who is admitted, how far the clocks are apart, and what is no greeting."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from fedmed.errors import FederationError
from fedmed.wire import greeting


@pytest.fixture
def served() -> Iterator[tuple[grpc.Server, str]]:
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("127.0.0.1:0")
    yield server, f"127.0.0.1:{port}"
    server.stop(None)


def test_it_says_who_is_admitted_and_what_time_it_is(
    served: tuple[grpc.Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, address = served
    server.add_generic_rpc_handlers((greeting.handlers(lambda key: key == b"known"),))
    server.start()
    for key, admitted in ((b"known", True), (b"stranger", False)):
        reply = greeting.greet(address, None, key)
        assert reply.admitted is admitted
        assert abs(reply.skew_s) <= reply.error_s + 1e-3  # one clock


def test_a_clock_that_is_off_is_measured(served: tuple[grpc.Server, str]) -> None:
    server, address = served

    def late(request: bytes, context: grpc.ServicerContext) -> bytes:
        return json.dumps({"time": time.time() + 90.0, "admitted": True, "version": "9"}).encode()

    handler = {"Greet": grpc.unary_unary_rpc_method_handler(late)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(greeting.SERVICE, handler),))
    server.start()
    reply = greeting.greet(address, None, b"key")
    assert reply.skew_s == pytest.approx(90.0, abs=reply.error_s + 0.1)


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"time": "x", "version": "1", "admitted": true}', b"[" * 4000, b"x" * 9000]
)
def test_an_answer_that_is_no_greeting_is_named(served: tuple[grpc.Server, str], answer: bytes) -> None:
    server, address = served
    handler = {"Greet": grpc.unary_unary_rpc_method_handler(lambda request, context: answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(greeting.SERVICE, handler),))
    server.start()
    with pytest.raises(FederationError, match="is no greeting"):
        greeting.greet(address, None, b"key")


@pytest.mark.parametrize("request_", [b"", b"[]", b"\xff", b"[" * 4000, b"x" * 9000])
def test_a_request_that_is_no_greeting_is_refused(served: tuple[grpc.Server, str], request_: bytes) -> None:
    server, address = served
    server.add_generic_rpc_handlers((greeting.handlers(lambda key: True),))
    server.start()
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{greeting.SERVICE}/Greet")
        with pytest.raises(grpc.RpcError) as error:
            call(request_, timeout=30, wait_for_ready=True)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_another_server_and_none(served: tuple[grpc.Server, str]) -> None:
    server, address = served
    server.start()
    with pytest.raises(FederationError, match="was not started by FedMed"):
        greeting.greet(address, None, b"key")
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(FederationError, match="does not answer within"),
    ):
        greeting.greet(f"127.0.0.1:{silent.getsockname()[1]}", None, b"key", timeout_s=0.5)
