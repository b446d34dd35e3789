"""Ask the served model one question about one public image, as any OpenAI client would.

start `fedmed serve NAME:VERSION` -> wait for /health -> chat.completions.create(image, question) -> answer
"""

from __future__ import annotations

import base64
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError
from PIL import Image

from aggregator.registry import Version
from aggregator.runs.folder import PUBLIC
from aggregator.runs.processes import ProcessGroup
from aggregator.superlink.launcher import free_port
from fedmed.config import Experiment
from fedmed.data.conversation import Conversation
from fedmed.data.manifest import load_manifest
from fedmed.data.schema import IMAGE_MARK, Example
from fedmed.errors import ServingError

START_TIMEOUT_S = 120.0


def ask_served_model(folder: Path, experiment: Experiment, version: Version, processes: ProcessGroup) -> dict[str, Any]:
    """The `served` part of the report: {model, question, answer, expected, latency_s}.

    Raises:
        ServingError: the server did not come up or refused the request.
    """
    reference = f"{version.name}:{version.version}"
    port = experiment.serving.port or free_port()
    command = [sys.executable, "-m", "aggregator.cli", "serve", reference]
    command += ["--host", experiment.serving.host, "--port", str(port), "--device", experiment.device]
    command += ["--uri", experiment.registry.uri, "--runs-dir", str(folder.parent)]
    processes.start("serve", command)
    client = OpenAI(base_url=f"http://{experiment.serving.host}:{port}/v1", api_key="none", max_retries=0, timeout=60.0)
    _wait_until_healthy(client, processes)
    manifest = load_manifest(folder / PUBLIC)
    example = next((item for item in manifest.examples if item.images), manifest.examples[0])
    started = time.monotonic()
    try:
        reply = client.chat.completions.create(
            model=reference,
            messages=chat_messages(example, manifest.images(example)),
            max_tokens=experiment.evaluation.max_new_tokens,
        )
    except OpenAIError as error:
        raise ServingError(f"{reference} did not answer: {error}", f"see {folder / 'logs' / 'serve.log'}") from None
    latency_s = round(time.monotonic() - started, 3)
    return {
        "model": reference,
        "question": example.question.replace(IMAGE_MARK, "").strip(),
        "answer": reply.choices[0].message.content or "",
        "expected": example.answer,
        "latency_s": latency_s,
    }


def chat_messages(example: Example, images: Sequence[Image.Image]) -> list[Any]:
    """An example's whole conversation as an OpenAI client sends it: its images as data URLs, each in its place."""
    pictures = iter(images)
    messages: list[Any] = Conversation.of(example, len(images), str.strip).messages(None)
    return [
        message
        | {"content": [_image_part(next(pictures)) if part["type"] == "image" else part for part in message["content"]]}
        for message in messages
    ]


def _image_part(picture: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _wait_until_healthy(client: OpenAI, processes: ProcessGroup) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        processes.check()
        try:
            client.models.list()
        except OpenAIError:
            time.sleep(0.2)
        else:
            return
    raise ServingError(f"the server did not answer within {START_TIMEOUT_S:.0f} s", "see serve.log in the run's logs")
