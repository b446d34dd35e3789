"""Downloads from a server of the test's own on loopback: verified, atomic, and plain about failure."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from fedmed.data.fetch import PUBLIC_SETS, PublicSet, content_sha256, fetch
from fedmed.data.importers import IMPORTERS
from fedmed.data.importers.medmnist import SETS
from fedmed.errors import DataError


class Server(ThreadingHTTPServer):
    """Serves `body` at every path; `cut` sends half of what it promises; 404 when `body` is empty."""

    body = b""
    cut = False
    requests = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(200 if self.server.body else 404)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body[: len(self.server.body) // (2 if self.server.cut else 1)])

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def entry(server: Server, md5: str = "", content: str = "") -> dict[str, PublicSet]:
    url = f"http://127.0.0.1:{server.server_address[1]}/set.npz?download=1"
    return {
        "set": PublicSet(
            "set.npz", "CC0 1.0", url, md5 or hashlib.md5(server.body, usedforsecurity=False).hexdigest(), content
        )
    }


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_is_verified_reported_and_not_repeated(tmp_path: Path, server: Server) -> None:
    server.body = os.urandom(200_000)
    seen: list[tuple[int, int]] = []
    path = fetch("set", tmp_path / "data", lambda done, total: seen.append((done, total)), sets=entry(server))
    assert path.read_bytes() == server.body
    assert files(tmp_path / "data") == ["set.npz"]
    assert seen == sorted(seen)
    assert seen[-1] == (200_000, 200_000)
    assert fetch("set", tmp_path / "data", sets=entry(server)) == path
    assert server.requests == 1


@pytest.mark.parametrize("failure", ["wrong hash", "cut", "not found"])
def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, server: Server, failure: str) -> None:
    server.body = b"" if failure == "not found" else b"x" * 300_000
    server.cut = failure == "cut"
    sets = entry(server, md5="0" * 32 if failure == "wrong hash" else "")
    expected = {"wrong hash": "has MD5 .*, expected 0000", "cut": "cut after", "not found": "could not be downloaded"}
    with pytest.raises(DataError, match=expected[failure]) as caught:
        fetch("set", tmp_path, sets=sets)
    assert caught.value.hint
    assert files(tmp_path) == []


def test_no_network_is_said_plainly_and_soon(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        port = listener.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(DataError, match=r"could not be downloaded from 127\.0\.0\.1") as caught:
            fetch("set", tmp_path, sets={"set": PublicSet("set.npz", "CC0", f"http://127.0.0.1:{port}/", "0")})
        assert time.monotonic() - started < 5
    assert "without a network" in caught.value.hint
    assert files(tmp_path) == []


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(DataError, match="could not be downloaded"):
            fetch("set", tmp_path, sets={"set": PublicSet("set.npz", "CC0", url, "0")}, timeout_s=0.2)


def test_a_copy_saved_again_is_known_by_its_content(tmp_path: Path, server: Server) -> None:
    arrays = {"a": np.arange(12).reshape(3, 4), "b": np.zeros(3, np.uint8)}
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez_compressed(tmp_path / "set.npz", **dict(reversed(arrays.items())))
    digest = content_sha256(tmp_path / "plain.npz")
    assert digest == content_sha256(tmp_path / "set.npz")
    assert fetch("set", tmp_path, sets=entry(server, "0" * 32, digest)) == tmp_path / "set.npz"
    assert server.requests == 0
    for changed in ({"a": arrays["a"].T.copy()}, {"a": arrays["a"].astype(np.int32)}, {"c": arrays["a"]}):
        np.savez(tmp_path / "changed.npz", **(arrays | changed))
        assert content_sha256(tmp_path / "changed.npz") != digest


def test_a_file_of_other_content_is_left_alone(tmp_path: Path, server: Server) -> None:
    (tmp_path / "set.npz").write_bytes(b"mine")
    server.body = b"theirs"
    with pytest.raises(DataError, match="is not set as published") as caught:
        fetch("set", tmp_path, sets=entry(server))
    assert "move it away" in caught.value.hint
    assert (tmp_path / "set.npz").read_bytes() == b"mine"


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, server: Server) -> None:
    server.body = b"x"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        fetch("set", tmp_path / "file" / "data", sets=entry(server))


def test_a_set_without_a_download_lists_the_steps_by_hand(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no download of its own") as caught:
        fetch("vqa_rad", tmp_path)
    assert "trainset.json" in caught.value.hint
    with pytest.raises(DataError, match=r"expected one of .*pneumoniamnist, .*vqa_rad"):
        fetch("slake", tmp_path)


def test_every_public_source_can_be_fetched_or_tells_its_steps(tmp_path: Path) -> None:
    assert set(PUBLIC_SETS) >= {entry.name for entry in SETS}
    for name in ("slake_zh", "path_vqa", "pmc_vqa_2", "pubmedqa", "medqa_4"):
        with pytest.raises(DataError) as caught:
            fetch(name, tmp_path)
        assert PUBLIC_SETS[name].filename in caught.value.hint


def test_every_public_set_has_an_importer_that_looks_for_its_file() -> None:
    assert {name: entry.filename for name, entry in PUBLIC_SETS.items()} == {
        name: IMPORTERS[name].filename for name in PUBLIC_SETS
    }
    assert all(entry.md5 and entry.url.startswith("https://") for entry in PUBLIC_SETS.values() if not entry.by_hand)


@pytest.mark.skipif(not os.environ.get("FEDMED_DATA_DIR"), reason="FEDMED_DATA_DIR is not set: the real data is absent")
def test_the_real_file_is_known_by_its_content() -> None:
    assert fetch("pneumoniamnist", Path(os.environ["FEDMED_DATA_DIR"])).exists()
