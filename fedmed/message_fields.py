"""A message's header and its typed fields: JSON text -> dictionary -> dataclass, every field checked against its annotation.

    >>> build(LoraSpec, {"rank": 8}, "train.lora")                                         # doctest: +SKIP
    WireError: train.lora lacks the keys ['alpha', ...]

| received                        | what happens            |
| ------------------------------- | ----------------------- |
| unknown or missing key          | WireError naming it     |
| another type than the field's   | WireError naming both   |
| NaN, infinity, 1e999            | WireError               |
| a whole number for a float      | taken                   |
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from contextlib import suppress
from functools import cache
from typing import Any

from fedmed.errors import WireError


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a frame's header. Raises WireError."""
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise WireError("the frame's header is not JSON") from error
    if not isinstance(body, dict):
        raise WireError(f"the frame's header is a {type(body).__name__}, expected an object")
    return body


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not allowed")


@cache
def _hints(cls: Any) -> dict[str, Any]:
    """The types of a message's fields; to look them up takes longer than to read the message."""
    return typing.get_type_hints(cls)


def build(cls: Any, body: Any, where: str) -> Any:
    """`body` as a `cls`, each field checked against its annotation."""
    if not isinstance(body, dict):
        raise WireError(f"{where} is a {type(body).__name__}, expected an object")
    hints = _hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(body) - names):
        raise WireError(f"{where} has unknown keys {unknown}")
    if missing := sorted(names - set(body)):
        raise WireError(f"{where} lacks the keys {missing}")
    return cls(**{name: _convert(hints[name], body[name], f"{where}.{name}") for name in names})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value, where)
    if isinstance(hint, types.GenericAlias):  # tuple[str, ...] and tuple[float, ...] are all generics of the contract
        if not isinstance(value, list):
            raise WireError(f"{where} is a {type(value).__name__}, expected a list")
        return tuple(_convert(typing.get_args(hint)[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if hint is float and type(value) is int:
        with suppress(OverflowError):  # a number beyond every float stays what it is, and is refused below
            value = float(value)
    if type(value) is not hint:
        raise WireError(f"{where} is a {type(value).__name__}, expected {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise WireError(f"{where} is not finite")
    return value
