"""The embedded model's adapter as bytes: what a real site is sent. Imports torch, so cases import this module late."""

from __future__ import annotations

from functools import cache
from typing import Any

from fedmed.messages import TrainTask
from fedmed.models.adapter import State, adapter_state, add_adapter, encode_state
from fedmed.models.base import load_base
from fedmed.models.checkpoint import ASSETS, EMBEDDED, checkpoint_sha256
from tests.faults.hospital import task

SMALL: dict[str, Any] = {"parts": ("projector",), "rank": 4}
BASE_SHA256 = checkpoint_sha256(ASSETS / EMBEDDED)


def real_task(number: int = 1, **changes: Any) -> TrainTask:
    """A task that a daemon with the embedded model can train."""
    return task(number, **{"base_sha256": BASE_SHA256, **SMALL, **changes})


@cache
def adapter() -> State:
    return adapter_state(add_adapter(load_base(EMBEDDED).model, real_task().lora, seed=0))


@cache
def adapter_bytes() -> bytes:
    return encode_state(adapter(), "float32")
