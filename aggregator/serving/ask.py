"""Ask the served model one question about one public image, as any OpenAI client would.

start `fedmed serve NAME:VERSION` -> wait for /health -> chat.completions.create(image, question) -> answer
"""

from __future__ import annotations

import base64
import io
import sys
import time
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError

from aggregator.registry import Version
from aggregator.runs.folder import PUBLIC
from aggregator.runs.processes import ProcessGroup
from aggregator.superlink.launcher import free_port
from fedmed.config import Experiment
from fedmed.data.manifest import load_manifest
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
    question, expected, image_url = _first_public_question(folder / PUBLIC)
    content: list[Any] = [{"type": "text", "text": question}]
    if image_url:
        content.insert(0, {"type": "image_url", "image_url": {"url": image_url}})
    started = time.monotonic()
    try:
        reply = client.chat.completions.create(
            model=reference,
            messages=[{"role": "user", "content": content}],
            max_tokens=experiment.evaluation.max_new_tokens,
        )
    except OpenAIError as error:
        raise ServingError(f"{reference} did not answer: {error}", f"see {folder / 'logs' / 'serve.log'}") from None
    latency_s = round(time.monotonic() - started, 3)
    answer = reply.choices[0].message.content or ""
    return {"model": reference, "question": question, "answer": answer, "expected": expected, "latency_s": latency_s}


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


def _first_public_question(public: Path) -> tuple[str, str, str]:
    """Question, expected answer and image (as a data URL) of the first public test example with an image."""
    manifest = load_manifest(public)
    example = next((item for item in manifest.examples if item.images), manifest.examples[0])
    if not example.images:
        return example.question, example.answer, ""
    buffer = io.BytesIO()
    manifest.images(example)[0].save(buffer, format="PNG")
    return example.question, example.answer, "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
