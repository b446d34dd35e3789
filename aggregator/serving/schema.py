"""The part of OpenAI's chat API that is served, as typed requests; whatever else a request asks is refused by name.

    {"model": "fedmed@champion", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
        {"type": "text", "text": "Does this chest X-ray show pneumonia?"}]}]}

| field                                  | meaning here                                                    |
| -------------------------------------- | --------------------------------------------------------------- |
| temperature                            | 0 (the default) is greedy: the same request, the same answer    |
| max_tokens, max_completion_tokens      | at most so many tokens; default 256 or what the context leaves  |
| stop                                   | up to 4 texts that end the answer and are not part of it        |
| stream, stream_options.include_usage   | server-sent events                                              |
| n, tools, logprobs, response_format    | refused unless they ask for the default                         |
| other fields                           | ignored, as OpenAI-compatible servers do                        |
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

MAX_IMAGES = 8


class ImageUrl(BaseModel):
    """`url`: a data URL."""

    url: str


class ImagePart(BaseModel):
    """One image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(BaseModel):
    """One text of a message."""

    type: Literal["text"]
    text: str


Part = Annotated[ImagePart | TextPart, Field(discriminator="type")]


def _as_parts(content: Any) -> Any:
    """A text as the one part that it stands for: of a union, an error would name the alternative that was not meant."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class Message(BaseModel):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part] | None, BeforeValidator(_as_parts)] = None


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk with token counts."""

    include_usage: bool = False


class TextFormat(BaseModel):
    """The only response format there is."""

    type: Literal["text"]


class ChatRequest(BaseModel):
    """A chat completion request; see the table above."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float | None, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    stop: Annotated[list[str] | None, BeforeValidator(_as_list), Field(max_length=4)] = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    tools: None = None
    functions: None = None
    response_format: TextFormat | None = None


class ApiError(Exception):
    """An error in OpenAI's shape. `message` never repeats what the request held: it may be a patient's."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
