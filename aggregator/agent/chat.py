"""Models that answer messages in OpenAI's shape.

>>> chat = EngineChat(engine)
>>> chat([user_message("Is there an effusion?", [png])])
'yes'
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from openai import BadRequestError, OpenAI, OpenAIError

from aggregator.serving.schema import ApiError, Message
from fedmed.errors import ServingError

if TYPE_CHECKING:
    from aggregator.serving.engine import Engine

Chat = Callable[[Sequence[dict[str, Any]]], str]
MAX_PIXELS = 16 << 20
_TOO_LONG = "context_length_exceeded"


class ContextExceeded(ServingError):
    """The messages are longer than the model's context."""


def user_message(text: str, images: Sequence[bytes] = ()) -> dict[str, Any]:
    """What a person says: the images (PNG or JPEG) first, as in training."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:{_kind(image)};base64,{base64.b64encode(image).decode()}"}}
        for image in images
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


class EngineChat:
    """A model of this process, asked as the server asks it. `max_tokens` 0: what the context leaves, at most 256."""

    def __init__(self, engine: Engine, max_tokens: int = 0) -> None:
        self._engine, self._max_tokens = engine, max_tokens

    def __call__(self, messages: Sequence[dict[str, Any]]) -> str:
        """The greedy answer. Raises ServingError where the model does not take the messages, ContextExceeded for too many."""
        from aggregator.serving.engine import Settings
        from aggregator.serving.prompts import build_prompt

        try:
            prompt = build_prompt([Message.model_validate(message) for message in messages], MAX_PIXELS)
            job = self._engine.prepare(prompt, Settings(max_tokens=self._max_tokens))
            return "".join(item for item in self._engine.run(job) if isinstance(item, str)).rstrip()
        except ApiError as error:
            kind = ContextExceeded if error.code == _TOO_LONG else ServingError
            raise kind(f"the model cannot be asked: {error.message}") from None


class ServerChat:
    """A served model. `model`: as its server lists it."""

    def __init__(self, client: OpenAI, model: str, max_tokens: int = 0) -> None:
        self._client, self._model = client, model
        self._options: dict[str, Any] = {"max_tokens": max_tokens} if max_tokens else {}

    def __call__(self, messages: Sequence[dict[str, Any]]) -> str:
        """The greedy answer. Raises ServingError where the server is away or refuses, ContextExceeded as EngineChat."""
        conversation: Any = list(messages)
        try:
            reply = self._client.chat.completions.create(
                model=self._model, messages=conversation, temperature=0, **self._options
            )
        except OpenAIError as error:
            too_long = isinstance(error, BadRequestError) and error.code == _TOO_LONG
            kind = ContextExceeded if too_long else ServingError
            raise kind(f"{self._model} did not answer: {error}", "is it served? see `fedmed serve`") from None
        return reply.choices[0].message.content or ""


def _kind(image: bytes) -> str:
    return "image/jpeg" if image.startswith(b"\xff\xd8") else "image/png"
