"""What the served model is asked: the whole conversation, each image in its place."""

from __future__ import annotations

import base64
import io
from typing import Any

from helpers_training import record
from PIL import Image

from aggregator.serving.ask import chat_messages
from aggregator.serving.prompts import build_prompt
from aggregator.serving.schema import Message
from fedmed.data.conversation import Conversation
from fedmed.data.shots import shown_before


def colour(part: dict[str, Any]) -> Any:
    data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
    return Image.open(io.BytesIO(data)).getpixel((0, 0))


def test_shots_and_their_images_are_sent_as_turns() -> None:
    asked = shown_before([record(7, 7, 1, "no"), record(8, 8, 1, "two")], record(1, 1, 1))
    pictures = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (10, 20, 30)]
    sent = chat_messages(asked, pictures)
    assert [message["role"] for message in sent] == ["user", "assistant"] * 2 + ["user"]
    assert [colour(message["content"][0])[0] for message in sent[::2]] == [10, 20, 30]
    assert [message["content"][0]["text"] for message in sent[1::2]] == ["no", "two"]
    assert "<image>" not in str([part.get("text") for message in sent for part in message["content"]])


def test_the_server_makes_of_it_the_prompt_that_was_trained_on() -> None:
    for item in (record(1, 1, 1), record(1, 2, 2), record(1, 3, 0), shown_before([record(7, 7, 1)], record(1, 1, 1))):
        pictures = [Image.new("RGB", (4, 4))] * len(item.images)
        sent = [Message.model_validate(message) for message in chat_messages(item, pictures)]
        prompt = build_prompt(sent, max_pixels=100)
        assert prompt.messages == Conversation.of(item, len(pictures), str.strip).messages(None)
        assert len(prompt.images) == len(pictures)
