"""A request's messages as what a processor's chat template takes, with the images decoded.

Image URLs are never fetched: a server that does lets a caller reach whatever the server can reach (SSRF).

| image_url                              | answer                                       |
| -------------------------------------- | -------------------------------------------- |
| data:image/png;base64, or image/jpeg   | decoded, RGB                                 |
| http://, https://, file://, a path     | 400 remote_image_refused                     |
| another type, wrong base64, not decodable | 400 invalid_image                         |
| more pixels or images than allowed     | 400 image_too_large, too_many_images         |
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from aggregator.serving.schema import MAX_IMAGES, ApiError, ImagePart, Message
from fedmed.data.images import decode
from fedmed.errors import DataError

_PREFIXES = tuple(f"data:image/{kind};base64," for kind in ("png", "jpeg", "jpg"))


@dataclass(frozen=True, slots=True)
class Prompt:
    """`messages` in the chat template's form; `images` in the order of their markers."""

    messages: list[dict[str, Any]]
    images: list[Image.Image]


def build_prompt(messages: Sequence[Message], max_pixels: int) -> Prompt:
    """The prompt of a request.

    Raises:
        ApiError: 400, naming the part of the request that is wrong.
    """
    prompt = Prompt([], [])
    for index, message in enumerate(messages):
        content = []
        for place, part in enumerate(message.content or []):
            if isinstance(part, ImagePart):
                where = f"messages.{index}.content.{place}.image_url.url"
                prompt.images.append(_decode_image(part.image_url.url, max_pixels, where))
                content.append({"type": "image"})
            else:
                content.append({"type": "text", "text": part.text.strip()})  # as the training prompts are
        role = "system" if message.role == "developer" else message.role
        prompt.messages.append({"role": role, "content": content})
    if len(prompt.images) > MAX_IMAGES:
        raise ApiError(
            400, f"{len(prompt.images)} images, expected at most {MAX_IMAGES}", code="too_many_images", param="messages"
        )
    return prompt


def _decode_image(url: str, max_pixels: int, where: str) -> Image.Image:
    prefix = next((prefix for prefix in _PREFIXES if url[:32].lower().startswith(prefix)), None)
    if prefix is None:
        code = "invalid_image" if url[:5].lower() == "data:" else "remote_image_refused"
        raise ApiError(
            400,
            "images are accepted as data URLs only, data:image/png;base64,... or data:image/jpeg;base64,...; "
            "no address is fetched",
            code=code,
            param=where,
        )
    try:
        data = base64.b64decode(url[len(prefix) :], validate=True)
        width, height = _size(data)
        if width * height > max_pixels:
            message = f"an image of {width} x {height} pixels, expected at most {max_pixels} pixels"
            raise ApiError(400, message, code="image_too_large", param=where)
        return decode(data)
    except (binascii.Error, DataError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ApiError(
            400, "an image is not a whole PNG or JPEG in base64", code="invalid_image", param=where
        ) from None


def _size(data: bytes) -> tuple[int, int]:
    """Width and height from the header; no pixel is decoded."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        return image.size
