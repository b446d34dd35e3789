"""The agent with a real tiny model that learnt one tool dialogue here: served over HTTP, and loaded from a registry."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from typer.testing import CliRunner, Result

from aggregator.cli import app
from aggregator.registry import MemoryRegistry, RunInfo, promote
from aggregator.registry.model_folder import write_manifest
from aggregator.serving.app import create_app
from aggregator.serving.engine import Engine
from aggregator.serving.server import listen
from fedmed.data.collate import Collator
from fedmed.data.images import decode, encode_png
from fedmed.data.schema import Example, Exchange, ImageRef
from fedmed.errors import FedMedError
from fedmed.models.tiny import build_model, build_processor, save
from fedmed.tools import Action, Output, Turn, write_outputs, write_turn

QUESTION = "What is an effusion?"
PASSAGE = "An effusion is fluid."
LOOK_UP = write_turn(Turn("Look it up.", (Action("retrieval", {"query": "effusion"}),), "One moment."))
ANSWER = write_turn(Turn("Found.", (), "It is fluid."))
TOLD = write_outputs([Output("retrieval", f"{PASSAGE} (a.txt)")], QUESTION)
PNG = encode_png(np.full((28, 28), 90, np.uint8))


def lessons() -> list[Example]:
    def example(question: str, answer: str, *history: Exchange) -> Example:
        return Example("p", (ImageRef(data=PNG),), question, answer, "open", "tool", "test", history=history)

    return [example(QUESTION, LOOK_UP), example(TOLD, ANSWER, Exchange(QUESTION, LOOK_UP))]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published folder of a model that knows one dialogue by heart."""
    folder = tmp_path_factory.mktemp("agent")
    processor = build_processor([QUESTION, LOOK_UP, ANSWER, TOLD] * 50)
    model: Any = build_model(len(processor.tokenizer), seed=0)
    batch = Collator(processor, 512).train_batch(lessons(), [[decode(PNG)]] * 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss = model(**batch.inputs, labels=batch.labels).loss
        if loss < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save(model, processor, folder / "merged")
    write_manifest(folder, {"created": "2026-01-02T03:04:05+00:00"})
    return folder


@pytest.fixture(scope="module")
def url(published: Path) -> Iterator[str]:
    listener = listen("127.0.0.1", 0)
    served = create_app(Engine.load(published, "cpu"), ["fedmed@champion"])
    server = uvicorn.Server(uvicorn.Config(served, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join()


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """What every call has in common: an image, a question and a library."""
    (tmp_path / "chest.png").write_bytes(PNG)
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "a.txt").write_text(PASSAGE)
    (tmp_path / "library" / "b.txt").write_text("The heart lies left.")
    return ["--image", str(tmp_path / "chest.png"), "--question", QUESTION, "--corpus", str(tmp_path / "library")]


def agent(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["agent", *arguments])


def test_a_served_model_looks_something_up_and_answers(url: str, given: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "said.json"
    done = agent("fedmed@champion", *given, "--url", url, "--transcript", str(kept))
    assert done.exit_code == 0, done.output
    assert done.stdout == "It is fluid.\n"
    assert f"step 1: retrieval: {PASSAGE} (a.txt)" in done.stderr
    said = json.loads(kept.read_text())
    assert [step["reply"] for step in said["steps"]] == [LOOK_UP, ANSWER]
    assert said["steps"][0]["outputs"][0]["data"][0]["source"] == "a.txt"


def test_a_registered_version_is_resolved_and_loaded(
    published: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = MemoryRegistry()
    registry.publish(published, RunInfo("fedmed", "k", "demo"))
    promote(registry, "fedmed:1")
    monkeypatch.setattr("aggregator.registry.open_registry", lambda *_: registry)
    done = agent("fedmed@champion", *given, "--json", "--device", "cpu")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["outcome"], said["answer"]) == ("answered", "It is fluid.")


def test_without_a_library_the_model_is_told_so(url: str, given: list[str]) -> None:
    done = agent("fedmed@champion", *given[:4], "--url", url, "--max-steps", "1")
    assert (
        isinstance(done.exception, FedMedError) and "no answer after 1 steps (out_of_steps)" in done.exception.message
    )
    assert "unavailable: not configured; start the agent with --corpus DIR" in done.stderr


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--tool", "grounding"], "expected NAME=ADDRESS"),
        (["--tool", "magic=http://localhost"], "unknown tool"),
        (["--tool", "grounding=localhost"], "expected an address"),
        (["--label-form", "Is it there?"], "expected one {}"),
        (["--question", " "], "--question is empty"),
        (["--image", "nosuch.png"], "nosuch.png cannot be read"),
        (["--image", __file__], "not a whole PNG or JPEG"),
        (["--corpus", "nosuch"], "holds no text"),
        (["--classifier", "fedmed"], "fedmed"),
        (["--url", "http://127.0.0.1:9/v1"], "did not answer"),
    ],
)
def test_a_mistake_is_an_error_of_ours(url: str, given: list[str], changes: list[str], expected: str) -> None:
    done = agent("fedmed@champion", *given, *(["--url", url] if "--url" not in changes else []), *changes)
    assert isinstance(done.exception, FedMedError), done.output
    assert expected in str(done.exception)
