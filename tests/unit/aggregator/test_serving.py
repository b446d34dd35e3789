"""The served model as the official `openai` client sees it, over a real uvicorn server on loopback."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

from aggregator.registry import MemoryRegistry
from aggregator.registry.model_folder import write_manifest
from aggregator.serving.app import create_app
from aggregator.serving.engine import Engine, cut_at
from aggregator.serving.server import listen, serve
from fedmed.data.collate import Collator
from fedmed.data.schema import Example, ImageRef
from fedmed.errors import RegistryError, ServingError
from fedmed.models.base import load_base

ROOT = Path(__file__).parents[3]
NAMES = ["fedmed@champion", "fedmed:7"]
QUESTION = "Does this chest X-ray show pneumonia?"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """A published folder whose merged model is the untrained base."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(base_folder, folder / "merged")
    write_manifest(folder, {"created": "2026-01-02T03:04:05+00:00"})
    return folder


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Engine:
    return Engine.load(model_folder, "cpu")


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    listener = listen("127.0.0.1", 0)
    app = create_app(engine, NAMES, max_body_bytes=200_000, max_pixels=256 * 256)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def picture(size: int = 32, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((size, size)).save(buffer, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def ask(client: OpenAI, url: str | None = None, **more: Any) -> Any:
    content: list[Any] = [{"type": "text", "text": QUESTION}]
    if url is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    options = {"model": NAMES[0], "messages": [{"role": "user", "content": content}], "max_tokens": 6, **more}
    return client.chat.completions.create(**options)


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == NAMES
    assert client.models.retrieve("fedmed:7").created == 1767323045
    with pytest.raises(NotFoundError, match="fedmed@champion"):
        client.models.retrieve("gpt-4")


def test_health(address: str) -> None:
    assert httpx.get(f"{address}/health").json() == {"status": "ok", "models": NAMES}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_question_is_answered(client: OpenAI, kind: str) -> None:
    reply = ask(client, picture(kind=kind))
    assert reply.model == NAMES[0] and reply.object == "chat.completion"
    choice = reply.choices[0]
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in {"stop", "length"}
    assert reply.usage.completion_tokens <= 6
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert ask(client, picture(kind=kind)).choices[0].message.content == choice.message.content


def test_text_alone_and_a_conversation_are_answered(client: OpenAI) -> None:
    assert ask(client).usage.prompt_tokens < ask(client, picture()).usage.prompt_tokens
    turns = [("system", "Be short."), ("user", QUESTION), ("assistant", "yes"), ("user", "Which side?")]
    assert ask(client, messages=[{"role": role, "content": text} for role, text in turns]).choices


def test_the_answer_is_the_models_own(client: OpenAI, model_folder: Path) -> None:
    """Served text equals greedy generation on the prompt that training and evaluation make."""
    data = base64.b64decode(picture().split(",")[1])
    example = Example("p", (ImageRef(data=data),), QUESTION, "yes", "closed", "vqa", "test")
    base = load_base(str(model_folder / "merged"))
    image = Image.open(io.BytesIO(data)).convert("RGB")
    inputs = Collator(base.processor, max_length=512).prompt_batch([example], [[image]])
    model: Any = base.model
    with torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    tokenizer: Any = base.processor
    text = tokenizer.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    reply = ask(client, picture())
    assert reply.choices[0].message.content == text.strip()
    assert reply.usage.prompt_tokens == inputs["input_ids"].shape[1]


def test_a_streamed_answer_is_the_whole_answer(client: OpenAI) -> None:
    whole = ask(client, picture())
    chunks = list(ask(client, picture(), stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.rstrip() == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(ask(client, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in without)


def test_sampling_follows_its_seed(client: OpenAI) -> None:
    def text(**more: Any) -> str:
        return str(ask(client, picture(), max_tokens=12, **more).choices[0].message.content)

    assert text(temperature=1.5, seed=1) == text(temperature=1.5, seed=1)
    assert len({text(temperature=1.5, seed=seed) for seed in range(4)}) > 1


def test_a_temperature_too_small_to_divide_by_is_greedy(client: OpenAI) -> None:
    greedy = ask(client, picture()).choices[0].message.content
    assert ask(client, picture(), temperature=1e-300).choices[0].message.content == greedy


def test_a_text_that_cannot_fit_is_refused_before_it_is_cut_into_tokens(
    client: OpenAI, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        engine, "_encode", lambda prompt: pytest.fail("seconds a megabyte, for an answer that is known")
    )
    with pytest.raises(BadRequestError) as error:
        ask(client, messages=[{"role": "user", "content": "word " * 30_000}])
    assert error.value.code == "context_length_exceeded" and "149999 characters" in error.value.message


def test_a_stop_text_ends_the_answer(client: OpenAI) -> None:
    whole = ask(client, picture(), max_tokens=20).choices[0].message.content
    stop = whole[3:5]
    reply = ask(client, picture(), max_tokens=20, stop=stop)
    assert reply.choices[0].message.content == whole.split(stop)[0].rstrip()
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("pieces", "stops", "expected", "stopped"),
    [
        (["ab", "cd"], (), "abcd", False),
        (["ab", "cd"], ("bc",), "a", True),
        (["a", "b", "c"], ("abd",), "abc", False),
        (["x", "END", "y"], ("E", "END"), "x", True),
        ([], ("a",), "", False),
        (["abc", "de"], ("abcde",), "", True),  # the piece is shorter than the stop
        (["abc", "xy"], ("abcde", "b"), "a", True),
        (["abc", "xy"], ("abcde",), "abcxy", False),
    ],
)
def test_cut_at(pieces: list[str], stops: tuple[str, ...], expected: str, stopped: bool) -> None:
    def collect() -> Any:
        met = yield from cut_at(iter(pieces), stops)
        yield met

    *texts, met = collect()
    assert "".join(texts) == expected and met is stopped


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.org/image.png", "remote_image_refused"),
        ("http://169.254.169.254/latest", "remote_image_refused"),
        ("file:///etc/passwd", "remote_image_refused"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "invalid_image"),
        ("data:image/png;base64,%%%", "invalid_image"),
        ("data:image/png;base64," + base64.b64encode(b"not an image").decode(), "invalid_image"),
        (picture()[:-60], "invalid_image"),
        (picture(300), "image_too_large"),
    ],
)
def test_images_that_are_refused(client: OpenAI, url: str, code: str) -> None:
    with pytest.raises(BadRequestError) as error:
        ask(client, url)
    assert error.value.code == code and error.value.param == "messages.0.content.0.image_url.url"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"messages": []}, "messages"),
        ({"n": 2}, "n:"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100_000}, "context holds 512"),
        ({"messages": [{"role": "user", "content": "secret-name <image>"}]}, "markup"),
        ({"messages": [{"role": "robot", "content": "secret-name"}]}, "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "secret-name", "x": 1}]}]},
            "content.0: type: expected one of 'image_url', 'text'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "secret-name"}]}]},
            "image_url: ",
        ),
        ({"messages": [{"role": "user", "content": ["secret-name"]}]}, "messages.0.content.0: "),
        ({"stop": ["a"] * 5}, "stop: Value should have at most 4 items"),
    ],
)
def test_wrong_requests_are_named_and_never_repeated(client: OpenAI, change: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequestError) as error:
        ask(client, **change)
    assert text in error.value.message and error.value.type == "invalid_request_error"
    assert "secret-name" not in str(error.value.body)


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (
            b"{nope",
            "application/json",
            "body: not JSON: Expecting property name enclosed in double quotes at character 1",
        ),
        (b"{}", "text/plain", "body: expected a JSON object, with the header Content-Type: application/json"),
        (b"[]", "application/json", "body: expected a JSON object, with the header Content-Type: application/json"),
    ],
)
def test_a_body_that_is_no_request_says_what_is_expected(address: str, body: bytes, kind: str, text: str) -> None:
    reply = httpx.post(f"{address}/v1/chat/completions", content=body, headers={"Content-Type": kind})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == text and reply.json()["error"]["param"] is None


def test_unknown_model_and_path(client: OpenAI, address: str) -> None:
    with pytest.raises(NotFoundError) as error:
        ask(client, model="gpt-4")
    assert error.value.code == "model_not_found"
    reply = httpx.get(f"{address}/v1/embeddings")
    assert reply.status_code == 404 and reply.json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{address}/v1/chat/completions").status_code == 405


def test_body_limit_with_and_without_a_declared_length(address: str) -> None:
    url = f"{address}/v1/chat/completions"
    large = b"x" * 300_000
    assert httpx.post(url, content=large).status_code == 413
    pieces = (large[start : start + 10_000] for start in range(0, len(large), 10_000))
    reply = httpx.post(url, content=pieces)
    assert reply.status_code == 413 and reply.json()["error"]["code"] == "request_too_large"
    assert httpx.post(url, content=b"{broken").status_code == 400


def test_requests_at_the_same_time_get_their_own_answers(client: OpenAI) -> None:
    expected = {size: ask(client, picture(size)).choices[0].message.content for size in (16, 48, 64)}
    found: list[tuple[int, str]] = []

    def work(size: int) -> None:
        found.append((size, ask(client, picture(size)).choices[0].message.content))

    threads = [threading.Thread(target=work, args=(size,)) for size in list(expected) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9 and all(text == expected[size] for size, text in found)


def test_a_reader_who_leaves_does_not_hold_the_model(client: OpenAI, engine: Engine) -> None:
    with ask(client, picture(), stream=True, max_tokens=400) as stream:
        next(iter(stream))
    started = time.monotonic()
    assert ask(client, picture()).choices
    assert time.monotonic() - started < 30


def test_a_changed_weight_is_not_loaded(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model_folder, folder)
    weights = folder / "merged" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RegistryError, match=r"merged/model\.safetensors"):
        Engine.load(folder, "cpu")


def test_a_port_in_use_is_named_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"port {port} on 127.0.0.1 is in use") as error:
            serve("fedmed@champion", MemoryRegistry(), "127.0.0.1", port, "cpu")
    assert "--port" in error.value.hint
    with pytest.raises(ServingError, match="cannot listen"):
        listen("no-such-host.invalid", 0)


def test_serve_as_a_process_says_when_it_is_ready_and_ends_cleanly(model_folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from aggregator.registry import *; from aggregator.serving import serve\n"
        "registry = MemoryRegistry()\n"
        "registry.publish(Path(sys.argv[1]), RunInfo('fedmed', 'k', 'demo')); promote(registry, 'fedmed:1')\n"
        "serve('fedmed@champion', registry, '127.0.0.1', 0, 'cpu')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(model_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline().split()
        assert line[:3] == ["fedmed", "serve", "ready"] and line[4:] == ["fedmed@champion", "fedmed:1"]
        client = OpenAI(base_url=line[3], api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["fedmed@champion", "fedmed:1"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
