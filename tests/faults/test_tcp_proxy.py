"""The proxy makes each fault it says, and no other: bytes arrive whole and in order where none was asked for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.lab import wait_for
from tests.faults.tcp_proxy import Proxy

DATA = bytes(range(256)) * 2000


class Echo:
    """A server that sends back what it gets, and keeps it."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        self.got = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection = self.server.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(1 << 16):
                self.got += data
                connection.sendall(data)
        except OSError:
            pass
        connection.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.address) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    made = socket.create_connection((host, int(port)))
    made.settimeout(30)
    return made


def exchange(proxy: Proxy, data: bytes = DATA) -> bytes:
    """What comes back until the stream ends, however it does."""
    with connect(proxy) as client:

        def send() -> None:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        threading.Thread(target=send, daemon=True).start()
        back = b""
        try:
            while piece := client.recv(1 << 16):
                back += piece
        except OSError:
            pass
        return back


def test_without_a_fault_all_bytes_pass(proxy: Proxy, echo: Echo) -> None:
    assert exchange(proxy) == DATA == echo.got
    assert proxy.passed == {"up": len(DATA), "down": len(DATA)}


def test_a_bit_is_flipped_once_where_it_was_asked_for(proxy: Proxy, echo: Echo) -> None:
    proxy.flip(100_000)
    back = exchange(proxy)
    assert [place for place, (a, b) in enumerate(zip(back, DATA, strict=True)) if a != b] == [100_000]
    assert back[100_000] == DATA[100_000] ^ 1 and proxy.done
    assert exchange(proxy) == DATA
    proxy.flip(7, "down")
    assert exchange(proxy)[7] == DATA[7] ^ 1 and echo.got.endswith(DATA)


def test_a_stream_is_cut_off_after_so_many_bytes(proxy: Proxy, echo: Echo) -> None:
    proxy.truncate(70_001)
    exchange(proxy)
    wait_for(lambda: echo.got == DATA[:70_001], "the first bytes")
    assert exchange(proxy) == DATA


def test_held_bytes_arrive_later(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as client:
        proxy.hold("down")
        client.sendall(b"hello")
        wait_for(lambda: proxy.held_bytes == 5 and echo.got == b"hello", "the echo to be held")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(10)
        proxy.release()
        client.settimeout(30)
        assert client.recv(10) == b"hello"


def test_a_cut_resets_connections_old_and_new_until_it_is_opened(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"a")
        assert client.recv(1) == b"a"
        proxy.cut()
        with pytest.raises(ConnectionError):
            client.recv(1)
    assert exchange(proxy) == b""
    proxy.open()
    assert exchange(proxy) == DATA


def test_delay_and_bandwidth_take_time(proxy: Proxy) -> None:
    begin = time.monotonic()
    assert exchange(proxy, b"quick") == b"quick"
    quick = time.monotonic() - begin
    proxy.delay_s = 0.3
    begin = time.monotonic()
    assert exchange(proxy, b"slow") == b"slow"
    assert time.monotonic() - begin > 0.6 > quick
    proxy.delay_s, proxy.bytes_per_s = 0.0, 10_000
    begin = time.monotonic()
    assert exchange(proxy, bytes(5_000)) == bytes(5_000)
    assert time.monotonic() - begin > 1.0


def test_it_listens_on_a_unix_socket_and_nobody_at_the_target_is_a_reset(tmp_path: Path) -> None:
    with Proxy(f"unix:{tmp_path}/nobody", f"unix:{tmp_path}/in"), socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/in")
        client.settimeout(30)
        assert client.recv(1) == b""  # a unix socket knows no reset
    assert not (tmp_path / "in").exists()
