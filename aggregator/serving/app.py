"""The HTTP side: OpenAI's paths, answers and error shape over one Engine.

    app = create_app(engine, ["fedmed@champion", "fedmed:7"])

| request                                    | answer                                        |
| ------------------------------------------ | --------------------------------------------- |
| body that is not the schema's              | 400, `param` names the field; no value repeated |
| unknown model                              | 404 model_not_found                           |
| body above the limit                       | 413, while it is being received               |
| fault inside                               | 500, without details                          |

Neither questions nor answers are logged.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from aggregator.serving.engine import Engine, Finish, Job, Settings
from aggregator.serving.limits import BodyLimit
from aggregator.serving.prompts import build_prompt
from aggregator.serving.schema import ApiError, ChatRequest

log = logging.getLogger("fedmed.serving")
MAX_BODY_BYTES = 32 << 20
MAX_PIXELS = 16 << 20


def create_app(
    engine: Engine, names: Sequence[str], *, max_body_bytes: int = MAX_BODY_BYTES, max_pixels: int = MAX_PIXELS
) -> FastAPI:
    """The application.

    Args:
        engine: a loaded model.
        names: model ids that mean it, the first one preferred.
        max_body_bytes, max_pixels: limits of a request's body and of each image.
    """
    app = FastAPI(title="FedMed", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    _add_error_handlers(app)
    models = {name: _model_object(name, engine) for name in names}

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "models": list(models)}

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": list(models.values())}

    @app.get("/v1/models/{name}")
    def get_model(name: str) -> dict[str, Any]:
        return _find_model(models, name)

    @app.post("/v1/chat/completions")
    def complete(request: ChatRequest) -> Response:
        _find_model(models, request.model)
        job = engine.prepare(build_prompt(request.messages, max_pixels), _settings(request))
        reply = _Reply(request, engine, job)
        if request.stream:
            return StreamingResponse(reply.events(), media_type="text/event-stream")
        return JSONResponse(reply.whole())

    return app


def _settings(request: ChatRequest) -> Settings:
    return Settings(
        max_tokens=request.max_completion_tokens or request.max_tokens or 0,
        temperature=request.temperature or 0.0,
        top_p=request.top_p or 1.0,
        seed=request.seed,
        stop=tuple(request.stop or ()),
    )


class _Reply:
    """One completion in OpenAI's shape, whole or as server-sent events."""

    def __init__(self, request: ChatRequest, engine: Engine, job: Job) -> None:
        self._request, self._items = request, engine.run(job)
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self) -> dict[str, Any]:
        text, finish = "", Finish("length", 0, 0)
        for item in self._items:
            if isinstance(item, Finish):
                finish = item
            else:
                text += item
        message = {"role": "assistant", "content": text.rstrip(), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish.reason}
        return self._object("chat.completion", choices=[choice], usage=_usage(finish))

    def events(self) -> Iterator[str]:
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            for item in self._items:
                if isinstance(item, Finish):
                    yield self._chunk({}, item.reason)
                    yield from self._usage_event(item)
                else:
                    yield self._chunk({"content": item})
        except ApiError as error:
            yield _event(error.body())
        except Exception:  # the headers are sent: an event is the only way left to say so
            log.exception("an answer broke off")
            yield _event(_fault().body())
        yield "data: [DONE]\n\n"

    def _usage_event(self, finish: Finish) -> Iterator[str]:
        if self._request.stream_options and self._request.stream_options.include_usage:
            yield _event(self._object("chat.completion.chunk", choices=[], usage=_usage(finish)))

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(self._object("chat.completion.chunk", choices=[choice]))

    def _object(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._request.model, **more}


def _usage(finish: Finish) -> dict[str, int]:
    return {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
    }


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _model_object(name: str, engine: Engine) -> dict[str, Any]:
    try:
        created = int(datetime.fromisoformat(engine.manifest["created"]).timestamp())
    except (KeyError, ValueError):
        created = 0
    return {"id": name, "object": "model", "created": created, "owned_by": "fedmed"}


def _find_model(models: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    if name not in models:
        message = f"this server does not hold the model asked for; it holds {', '.join(models)}"
        raise ApiError(404, message, code="model_not_found", param="model")
    return models[name]


def _fault() -> ApiError:
    return ApiError(500, "the server could not answer; its operator finds the cause in its log", code="internal_error")


def _wrong_body(found: Mapping[str, Any]) -> ApiError:
    """What pydantic found, without any value of the request."""
    where = ".".join(str(part) for part in found["loc"] if part != "body")
    message = found["msg"]
    if found["type"] == "json_invalid":
        where, message = "", f"not JSON: {found['ctx']['error']} at character {where}"
    elif found["type"] == "model_attributes_type" and not where:
        message = "expected a JSON object, with the header Content-Type: application/json"
    elif found["type"] == "union_tag_invalid":  # its message repeats the tag
        message = f"type: expected one of {found['ctx']['expected_tags']}"
    return ApiError(400, f"{where or 'body'}: {message}", code="invalid_request", param=where or None)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    def on_api_error(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(RequestValidationError)
    def on_wrong_body(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse(_wrong_body(error.errors()[0]).body(), 400)

    @app.exception_handler(HTTPException)
    def on_http_error(_: Request, error: HTTPException) -> JSONResponse:
        body = ApiError(error.status_code, f"{error.detail}", code="not_served").body()
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    def on_fault(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse(_fault().body(), 500)
