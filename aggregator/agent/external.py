"""A tool of somebody else's, over HTTP, as the workers of LLaVA-Plus and MMedAgent answer.

    >>> run = external("segmentation", "http://127.0.0.1:21004/worker_generate")

POST {"image": base64 of the first image, "prompt": the question, "box_threshold": 0.3, "text_threshold": 0.25, ...arguments}
-> a JSON object, such as {"boxes": [[0.4, 0.5, 0.8, 0.7]], "logits": [0.95], "phrases": ["tumor"], "masks_rle": [...]}

The address is the operator's; a model cannot choose it. Images leave this process for it: name a machine that may see them.

| the tool                                              | the model reads                                           |
| ----------------------------------------------------- | --------------------------------------------------------- |
| an object                                             | the object, without masks and pictures: those are `data`  |
| masks or pictures alone                               | {'message': 'The <tool> has processed the image.'}        |
| `error_code` that is not 0, another status than 200   | failed: ...                                               |
| away, slow, another form, above MAX_BYTES, a redirect | failed: ...                                               |
"""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import urlsplit

import httpx

from aggregator.agent.toolbox import Call, Result, Run
from fedmed.errors import ConfigError, ToolError

TIMEOUT_S = 60.0
MAX_BYTES = 32 << 20
_PICTURES = ("masks_rle", "edited_image", "image_seg", "iou_sort_masks", "size")
_THRESHOLDS = {"box_threshold": 0.3, "text_threshold": 0.25}


def external(tool: str, address: str, timeout_s: float = TIMEOUT_S) -> Run:
    """The tool of that name at an address. Raises ConfigError for one that is none."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            [f"--tool {tool}={address}: expected an address such as http://127.0.0.1:21004/worker_generate"]
        )

    def run(call: Call) -> Result:
        arguments = {key: value for key, value in call.params.items() if key != "image"}
        image = {"image": base64.b64encode(call.images[0]).decode()} if call.images else {}
        return _result(tool, _post(address, {**image, "prompt": call.question, **_THRESHOLDS, **arguments}, timeout_s))

    return run


def _post(address: str, body: dict[str, Any], timeout_s: float) -> Any:
    """The JSON of the answer. Raises ToolError."""
    content = b""
    try:
        with httpx.stream("POST", address, json=body, timeout=timeout_s, follow_redirects=False) as reply:
            if reply.status_code != 200:
                raise ToolError(f"failed: the tool answered with status {reply.status_code}, expected 200")
            for piece in reply.iter_bytes():
                content += piece
                if len(content) > MAX_BYTES:
                    raise ToolError(f"failed: the tool's answer is larger than {MAX_BYTES} bytes")
        return json.loads(content)
    except httpx.HTTPError as error:
        raise ToolError(f"failed: the tool cannot be reached ({type(error).__name__})", "is it running?") from None
    except (ValueError, RecursionError):
        raise ToolError("failed: the tool's answer is not JSON") from None


def _result(tool: str, answer: Any) -> Result:
    if not isinstance(answer, dict):
        raise ToolError(f"failed: the tool answered with a JSON {type(answer).__name__}, expected an object")
    if answer.get("error_code"):
        raise ToolError(f"failed: the tool answered with error code {answer['error_code']}")
    said = {key: value for key, value in answer.items() if key not in (*_PICTURES, "error_code")}
    if not any(said.values()) and any(answer.get(key) for key in _PICTURES):
        said = {"message": f"The {tool} has processed the image."}
    return Result(said, answer)
