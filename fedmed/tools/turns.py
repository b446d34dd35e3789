"""Typed turns of a tool dialogue, and the JSON of MMedAgent's files.

    >>> Turn.from_json({"thoughts": "t", "actions": [{"API_name": "report", "API_params": {}}], "value": "v"})
    Turn(actions=(Action(name='report'),))

| JSON                                                     | becomes                                         |
| -------------------------------------------------------- | ----------------------------------------------- |
| `thoughts` or `actions` missing or null (plain answers)  | empty                                           |
| white space around a text                                | dropped                                         |
| `API_params` missing or null                             | {}                                              |
| another type, an empty name, `value` missing             | TurnError naming the field and what it expected |
| NaN, Infinity, half a surrogate pair, nesting beyond 8   | TurnError: they do not survive being written    |
| no human turn before an answer, two of one speaker       | TurnError                                       |

An error names the field and never shows what was said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedmed.errors import TurnError

MAX_DEPTH = 8
_HUMAN, _MODEL = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True, slots=True)
class Action:
    """A call that a model asks for: the tool's name as the model wrote it, and its arguments (plain JSON)."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, data: Any) -> Action:
        """Of `{"API_name": ..., "API_params": {...}}`. Raises TurnError."""
        if not isinstance(data, Mapping):
            raise _wrong("an action", data, "an object")
        name = _text(data, "API_name")
        params = data.get("API_params")
        params = {} if params is None else params
        if not name:
            raise TurnError("API_name is empty, expected the name of a tool")
        if not isinstance(params, Mapping):
            raise _wrong("API_params", params, "an object")
        return cls(name, _plain(params))

    def to_json(self) -> dict[str, Any]:
        return {"API_name": self.name, "API_params": _plain(self.params)}


@dataclass(frozen=True, slots=True)
class Turn:
    """What a model says: why, which tools it wants, and what the reader sees. Without actions, `value` is the answer."""

    thoughts: str = field(repr=False)
    actions: tuple[Action, ...]
    value: str = field(repr=False)

    @classmethod
    def from_json(cls, data: Any) -> Turn:
        """Of `{"thoughts": ..., "actions": [...], "value": ...}`. Raises TurnError."""
        if not isinstance(data, Mapping):
            raise _wrong("a turn", data, "an object")
        actions = data.get("actions")
        actions = [] if actions is None else actions
        if not isinstance(actions, list | tuple):
            raise _wrong("actions", actions, "a list")
        thoughts = "" if data.get("thoughts") is None else _text(data, "thoughts")
        return cls(thoughts, tuple(Action.from_json(action) for action in actions), _text(data, "value"))

    def to_json(self) -> dict[str, Any]:
        return {
            "thoughts": self.thoughts,
            "actions": [action.to_json() for action in self.actions],
            "value": self.value,
        }


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One row of MMedAgent's file.

    Attributes:
        image_id: identifies the image; empty where there is none.
        image: its path; empty for a dialogue without an image.
        exchanges: what was asked (the question, then outputs of tools) and the turn that followed, oldest first.
    """

    image_id: str = field(repr=False)
    image: str = field(repr=False)
    exchanges: tuple[tuple[str, Turn], ...] = field(repr=False)

    @classmethod
    def from_json(cls, data: Any) -> Dialogue:
        """Of `{"image_id": ..., "image": ..., "conversations": [...]}`. Raises TurnError."""
        if not isinstance(data, Mapping):
            raise _wrong("a dialogue", data, "an object")
        said = data.get("conversations")
        if not isinstance(said, list | tuple) or not said or len(said) % 2:
            raise TurnError("conversations is not a list of questions, each with its answer")
        pairs = [_exchange(said[place], said[place + 1]) for place in range(0, len(said), 2)]
        return cls(_optional(data, "image_id", "id"), _optional(data, "image"), tuple(pairs))

    def to_json(self) -> dict[str, Any]:
        said: list[dict[str, Any]] = []
        for question, turn in self.exchanges:
            said += [{"from": "human", "value": question}, {"from": "gpt", **turn.to_json()}]
        image = {"image": self.image} if self.image else {}
        return {"image_id": self.image_id, **image, "conversations": said}


def _exchange(human: Any, model: Any) -> tuple[str, Turn]:
    for said, speakers in ((human, _HUMAN), (model, _MODEL)):
        if not isinstance(said, Mapping):
            raise _wrong("a turn", said, "an object")
        if said.get("from") not in speakers:
            raise TurnError("the speakers do not take turns, expected human, gpt, human, gpt")
    return _text(human, "value"), Turn.from_json(model)


def _optional(data: Mapping[str, Any], *fields: str) -> str:
    """The first of these fields that is there, as a text; identifiers may be numbers."""
    for name in fields:
        if data.get(name) is not None:
            value = data[name]
            return _text({name: str(value) if type(value) is int else value}, name)
    return ""


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise TurnError(f"{name} is {'missing' if name not in data else type(value).__name__}, expected a text")
    _require_utf8(value)
    return value.strip()


def _plain(value: Any, depth: int = 0) -> Any:
    """Plain JSON, copied: what is written is read again as the same."""
    if depth > MAX_DEPTH:
        raise TurnError(f"API_params is nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TurnError("API_params has a key that is not a text")
        return {_plain(key, depth): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, str):
        _require_utf8(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise TurnError("API_params holds a number that is not finite")
    elif not isinstance(value, bool | int | float) and value is not None:
        raise _wrong("API_params", value, "plain JSON")
    return value


def _require_utf8(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TurnError("a text holds half of a surrogate pair, expected Unicode") from None


def _wrong(what: str, value: Any, expected: str) -> TurnError:
    return TurnError(f"{what} is {type(value).__name__}, expected {expected}")
