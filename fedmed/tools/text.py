"""A turn as the text that a model learns and writes; outputs of tools as the question that follows. Pure.

    "thoughts🤔" The image must be searched.
    "actions🚀" [{"API_name": "grounding", "API_params": {"prompts": ["nodule"]}}]
    "value👉" I look for the nodule.

    grounding output: {'boxes': [[0.4, 0.5, 0.8, 0.7]], 'phrases': ['nodule']}

    Answer my first question: Where is the nodule?

What is written is what LLaVA-Plus's training code makes of a turn, but for the line end after the last part, which generation
drops. What is read:

| the text                                           | becomes                                                         |
| -------------------------------------------------- | --------------------------------------------------------------- |
| no space after a marker (MMedAgent's evaluation)   | the same turn                                                   |
| words before the first part                        | ignored, as LLaVA-Plus does                                     |
| `"value👉"` alone (a plain answer)                 | a turn without thoughts and actions                             |
| actions with single quotes                         | read as if they were double ones, as LLaVA-Plus does            |
| more than MAX_CHARS                                | TurnError, unread                                               |
| cut off, a part missing, twice or out of order,    | TurnError, whatever the text is; it names the part and never    |
| actions that are no JSON list of actions           | shows what was said                                             |
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fedmed.errors import TurnError
from fedmed.tools.turns import Action, Turn

THOUGHTS, ACTIONS, VALUE = '"thoughts🤔"', '"actions🚀"', '"value👉"'
MAX_CHARS = 1 << 18
_PARTS = (THOUGHTS, ACTIONS, VALUE)
_MARKER = re.compile("|".join(_PARTS))
_OUTPUT, _AGAIN = " output: ", "\n\nAnswer my first question: "
_CUT = "the answer may be cut off: let the model write more tokens"


@dataclass(frozen=True, slots=True)
class Output:
    """What a tool gave.

    Attributes:
        tool: its name as the model wrote it.
        text: what the model reads.
        data: what does not fit into a text, such as masks; the model does not see it.
        failed: the text says why there is no result.
    """

    tool: str
    text: str = field(repr=False)
    data: Any = field(default=None, repr=False, compare=False)
    failed: bool = field(default=False, compare=False)


def write_turn(turn: Turn) -> str:
    """The text of a turn. Raises TurnError where it could not be read again: a marker inside, or too long."""
    if _MARKER.search(turn.thoughts) or _MARKER.search(turn.value):
        raise TurnError('thoughts or value hold a marker such as "actions🚀", expected plain text')
    actions = json.dumps([action.to_json() for action in turn.actions])
    text = f"{THOUGHTS} {turn.thoughts}\n{ACTIONS} {actions}\n{VALUE} {turn.value}".strip()
    if len(text) > MAX_CHARS:
        raise TurnError(f"the turn has {len(text)} characters, expected at most {MAX_CHARS}")
    return text


def has_parts(text: str) -> bool:
    """Whether a text has any part of a turn; one without is an answer in plain words."""
    return _MARKER.search(text) is not None


def read_turn(text: str) -> Turn:
    """The turn of a text. Raises TurnError, and no other error, for a text that is none."""
    if len(text) > MAX_CHARS:
        raise TurnError(f"the turn has {len(text)} characters, expected at most {MAX_CHARS}")
    found = list(_MARKER.finditer(text))
    names = [match.group() for match in found]
    if VALUE not in names:
        raise TurnError(f"the turn has no part {VALUE}", _CUT if names else "expected thoughts, actions and value")
    if names not in ([*_PARTS], [ACTIONS, VALUE], [THOUGHTS, VALUE], [VALUE]):
        raise TurnError("the turn has a part twice or out of order, expected thoughts, actions, value")
    ends = [match.start() for match in found[1:]] + [len(text)]
    parts = {match.group(): text[match.end() : end].strip() for match, end in zip(found, ends, strict=True)}
    # Checked as JSON from a file is: a text may hold half of a surrogate pair, too.
    actions = _read_actions(parts[ACTIONS]) if parts.get(ACTIONS) else []
    return Turn.from_json({"thoughts": parts.get(THOUGHTS, ""), "actions": actions, "value": parts[VALUE]})


def write_outputs(outputs: Sequence[Output], question: str) -> str:
    """What is said to the model after its call: the outputs, and the question again."""
    said = "\n\n".join(f"{output.tool}{_OUTPUT}{output.text}" for output in outputs)
    return f"{said}{_AGAIN}{' '.join(question.split())}"


def read_outputs(text: str) -> tuple[Output, str]:
    """The output and the question of such a text; several outputs are read as one of the first tool.

    Raises:
        TurnError: it is not of that form.
    """
    said, again, question = text.rpartition(_AGAIN)
    tool, colon, output = said.partition(_OUTPUT)
    if not again or not colon or not tool.strip():
        raise TurnError('it is no output of a tool, expected "<tool> output: ..." and "Answer my first question: ..."')
    return Output(tool.strip(), output), question.strip()


def _read_actions(text: str) -> list[Any]:
    actions = _json(text)
    if actions is None:
        actions = _json(text.replace("'", '"'))
    if not isinstance(actions, list):
        raise TurnError(f"{ACTIONS} is not a JSON list", _CUT)
    return [Action.from_json(action).to_json() for action in actions]


def _json(text: str) -> Any:
    """None where it is not JSON."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
