"""Would this site be let in? A real TLS server with each wrong certificate, clock and key; each is named, with what to do."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from aggregator.joining.certificates import certificate_pem, key_pem, new_authority, new_key, new_server_certificate
from fedmed.errors import AdmissionError, FederationError
from fedmed.node_keys import new_private_key, public_pem
from fedmed.wire import greeting
from hospital_client.connection import Connection, ConnectionSettings
from hospital_client.reach import reach

NOW = datetime.now(UTC)
CA = new_authority("test", NOW - timedelta(days=100))
KEY = new_private_key()
Start = Callable[..., str]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a SuperLink's stand-in: `begin` and `days` of its certificate, `skew` of its clock, who is `admitted`."""
    servers: list[grpc.Server] = []

    def serve(
        *,
        begin: datetime = NOW,
        days: int = 365,
        hosts: Sequence[str] = ("aggregator.example.org",),
        authority: object = CA,
        skew: float = 0.0,
        admitted: bytes = public_pem(KEY.public_key()),
    ) -> str:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            known = json.loads(request)["public_key"].encode() == admitted
            return json.dumps({"time": time.time() + skew, "admitted": known, "version": "1"}).encode()

        server = grpc.server(ThreadPoolExecutor(2))
        handler = {"Greet": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(greeting.SERVICE, handler),))
        key = new_key()
        certificate = new_server_certificate(authority, key.public_key(), hosts, begin, days)  # type: ignore[arg-type]
        pair = (key_pem(key), certificate_pem(certificate))
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield serve
    for server in servers:
        server.stop(None)


def connection(address: str) -> Connection:
    settings = ConnectionSettings("north", address, "/run/fedmed/north.sock")
    return Connection(Path("/nowhere"), settings, certificate_pem(CA.certificate), KEY)


def test_a_site_that_is_let_in(start: Start) -> None:
    found = reach(connection(start()))
    assert found.warnings == ()
    assert abs((found.certificate_ends - NOW) / timedelta(days=365) - 1) < 0.01
    assert "lets this site in" in found.text


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ({"begin": NOW - timedelta(days=30), "days": 10}, "ended on", "provision renew"),
        ({"begin": NOW + timedelta(days=2)}, "begins on", "set this machine's clock"),
        ({"authority": new_authority("somebody else", NOW)}, "was not made by this consortium's CA", "do not go on"),
        ({"skew": -6.5}, "6 s ahead of|7 s ahead of", "set the clock"),
        ({"skew": 400.0}, "400 s behind", "set the clock"),
        ({"admitted": b"another key"}, "does not admit the key SHA256:.* unknown there, or revoked", "node.pub"),
    ],
)
def test_what_keeps_a_site_out_is_named(start: Start, options: dict[str, object], said: str, hint: str) -> None:
    with pytest.raises(AdmissionError, match=said) as error:
        reach(connection(start(**options)))
    assert hint in error.value.hint


def test_a_certificate_for_other_names(start: Start) -> None:
    address = start().replace("127.0.0.1", "127.0.0.2")
    port = address.rpartition(":")[2]
    server = grpc.server(ThreadPoolExecutor(1))
    key = new_key()
    certificate = new_server_certificate(CA, key.public_key(), ["aggregator.example.org"], NOW, 9)
    credentials = grpc.ssl_server_credentials([(key_pem(key), certificate_pem(certificate))])
    assert server.add_secure_port(address, credentials) == int(port)
    server.start()
    with pytest.raises(AdmissionError, match=r"is for aggregator.example.org, .* not for that address"):
        reach(connection(address))
    server.stop(None)


def test_what_a_person_should_know_in_time(start: Start) -> None:
    (line,) = reach(connection(start(days=29))).warnings
    assert "in 28 days" in line and "provision renew" in line
    (line,) = reach(connection(start(skew=70.0))).warnings
    assert "differ by 70 s" in line
    assert reach(connection(start(days=32, skew=50.0))).warnings == ()


def test_plain_text_and_nobody(start: Start) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(AdmissionError, match="speaks no TLS"):
        reach(connection(f"127.0.0.1:{port}"))
    server.stop(None).wait()
    for address, said in ((f"127.0.0.1:{port}", "Connection refused"), ("nowhere.invalid:9092", "nobody answers")):
        with pytest.raises(FederationError, match=said):
            reach(connection(address))
