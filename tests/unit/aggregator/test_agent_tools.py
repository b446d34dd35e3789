"""Retrieval over a folder made here, and tools over HTTP against a real server on loopback."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.agent.external import external
from aggregator.agent.retrieval import Passage, load_corpus, retrieval
from aggregator.agent.toolbox import Toolbox
from fedmed.data.images import encode_png
from fedmed.errors import ConfigError, DataError
from fedmed.metrics.scores import tokens
from fedmed.tools import Action, Output

PNG = encode_png(np.zeros((8, 8), np.uint8))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "lung.md").write_text(
        "# Effusion\n\nFluid between lung and chest wall.\nIt blunts the angle.\n\n# Nodule\r\n\r\nA small round opacity.\n"
    )
    (tmp_path / "deep" / "heart.txt").write_text("\ufeffCardiomegaly is a large heart.\n\n\n\nThe heart lies left.\n")
    rows = [{"title": "Galactosemia", "text": "Avoid milk."}, {"text": "Fluid is drained."}]
    (tmp_path / "notes.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    (tmp_path / "image.png").write_bytes(PNG)
    return tmp_path


def look_up(corpus: list[Passage], params: dict[str, Any], question: str = "q") -> Output:
    return Toolbox({"retrieval": retrieval(corpus)}).run(Action("ChatCAD-R", params), question, [])


def test_a_folder_becomes_passages(library: Path) -> None:
    assert load_corpus(library) == [
        Passage("deep/heart.txt", "Cardiomegaly is a large heart."),
        Passage("deep/heart.txt", "The heart lies left."),
        Passage("lung.md", "Effusion: Fluid between lung and chest wall. It blunts the angle."),
        Passage("lung.md", "Nodule: A small round opacity."),
        Passage("notes.jsonl", "Galactosemia: Avoid milk."),
        Passage("notes.jsonl", "Fluid is drained."),
    ]


def test_the_passage_that_is_about_the_query_comes_first(library: Path) -> None:
    corpus = load_corpus(library)
    output = look_up(corpus, {"query": "Effusion, fluid"})
    assert output.text.splitlines() == [
        "Effusion: Fluid between lung and chest wall. It blunts the angle. (lung.md)",
        "Fluid is drained. (notes.jsonl)",
    ]
    assert [hit["source"] for hit in output.data] == ["lung.md", "notes.jsonl"]
    assert look_up(corpus, {}, "What is galactosemia?").text.startswith("Galactosemia: Avoid milk.")
    assert look_up(corpus, {"query": "zebra ?"}).text == "nothing was found"


def test_the_rank_is_that_of_the_formula_in_the_docs() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(30)]
    corpus = [Passage(str(place), " ".join(rng.choice(words, size=rng.integers(3, 20)))) for place in range(60)]
    split = [tokens(passage.text) for passage in corpus]
    mean = sum(map(len, split)) / len(split)

    def score(query: str, passage: list[str]) -> float:
        total = 0.0
        for word in query.split():
            holding = sum(word in other for other in split)
            idf = np.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
            tf = passage.count(word)
            total += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(passage) / mean))
        return total

    for _ in range(20):
        query = " ".join(rng.choice(words, size=3, replace=False))
        best = sorted((score(query, passage) for passage in split), reverse=True)[:2]
        given = [hit["score"] for hit in look_up(corpus, {"query": query}).data]
        assert given == pytest.approx(best, abs=1e-3)


def test_a_library_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no text"):
        load_corpus(tmp_path / "nosuch")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a\.txt is not a text in UTF-8"):
        load_corpus(tmp_path)
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.jsonl").write_text('{"text": 3}')
    with pytest.raises(DataError, match=r"b\.jsonl row 1: text is int, expected str"):
        load_corpus(tmp_path)


class Worker(BaseHTTPRequestHandler):
    """Answers with what the test put into `reply`, and keeps the request in `asked`."""

    reply: tuple[int, bytes] = (200, b"{}")
    asked: dict[str, Any] = {}  # noqa: RUF012  one server, one test at a time

    def do_POST(self) -> None:
        type(self).asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, body = type(self).reply
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Worker)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/worker_generate"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(address: str, status: int, answer: Any) -> Output:
    Worker.reply = (status, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
    toolbox = Toolbox({"segmentation": external("segmentation", address)})
    return toolbox.run(Action("MedSAM", {"prompts": ["tumor"], "image": "<imagepath>"}), "Outline it.", [PNG])


def test_a_worker_is_asked_and_read_as_llava_plus_does(address: str) -> None:
    answer = {
        "boxes": [[0.4123, 0.5, 0.8, 0.7]],
        "logits": [0.987],
        "phrases": ["tumor"],
        "masks_rle": [{"counts": "x"}],
    }
    output = ask(address, 200, answer)
    assert output.text == "{'boxes': [[0.41, 0.5, 0.8, 0.7]], 'logits': [0.99], 'phrases': ['tumor']}"
    assert (output.data, output.failed) == (answer, False)
    assert base64.b64decode(Worker.asked.pop("image")) == PNG
    assert Worker.asked == {"prompt": "Outline it.", "prompts": ["tumor"], "box_threshold": 0.3, "text_threshold": 0.25}
    masks = ask(address, 200, {"masks_rle": [{"counts": "x"}], "boxes": None})
    assert masks.text == "{'message': 'The segmentation has processed the image.'}"
    assert ask(address, 200, {}).text == "{}"


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (500, {}, "status 500"),
        (302, {}, "status 302"),
        (200, b"<html>", "not JSON"),
        (200, b"[" * 100_000, "not JSON"),
        (200, [1], "a JSON list, expected an object"),
        (200, {"text": "out of memory", "error_code": 50002}, "error code 50002"),
    ],
)
def test_a_worker_that_fails_is_a_failure(address: str, status: int, answer: Any, expected: str) -> None:
    output = ask(address, status, answer)
    assert output.failed and output.text.startswith("failed: ") and expected in output.text


def test_an_answer_without_end_and_a_worker_that_is_away(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.agent.external.MAX_BYTES", 10)
    assert "larger than 10 bytes" in ask(address, 200, {"a": "x" * 100}).text
    assert "cannot be reached" in ask("http://127.0.0.1:9/", 200, {}).text
    for wrong in ("127.0.0.1:80", "file:///etc/passwd", ""):
        with pytest.raises(ConfigError, match="expected an address"):
            external("grounding", wrong)
