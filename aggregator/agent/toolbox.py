"""What runs each tool of the table fedmed.tools.specs.

    >>> toolbox = Toolbox({"report": lambda call: "The lungs are clear."})
    >>> toolbox.run(Action("ChatCAD-G"), "Write a report.", [png]).text
    'The lungs are clear.'

Whatever happens is an Output that the model can read; a tool never ends the agent, and nothing is made up:

| the call                                  | output                                                              |
| ----------------------------------------- | ------------------------------------------------------------------- |
| names no known tool                       | failed: unknown tool, expected one of ...                           |
| arguments that the table does not allow   | failed: wrong arguments: ...                                        |
| a tool that nothing runs                  | unavailable: not configured, and what to do                         |
| the tool raises                           | failed: its message, or its kind where it is no error of ours       |
| gives a text                              | that text                                                           |
| gives an object                           | as Python writes it, as in MMedAgent's files; numbers to 2 decimals |
| a text with markup of models, or too long | without the markup; cut at `max_chars`                              |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedmed.errors import FedMedError, ToolError
from fedmed.tools import Action, Output, find_spec

MAX_CHARS = 2000
HOW = {
    "retrieval": "start the agent with --corpus DIR, a folder of texts",
    "grounding": "start the agent with --tool grounding=ADDRESS of a detector, such as Grounding DINO's worker",
    "segmentation": "start the agent with --tool segmentation=ADDRESS of a segmenter, such as MedSAM's worker",
}
# What chat templates write between turns and for images: inside a text it would be refused, or start a turn of its own.
_MARKUP = re.compile(r"<\|[^|<>]*\|>|</?s>|<image>|<pad>|</?\w+_of_\w+>")


@dataclass(frozen=True, slots=True)
class Call:
    """One call: valid arguments, the question of the conversation and its images (PNG or JPEG)."""

    params: Mapping[str, Any] = field(repr=False)
    question: str = field(repr=False)
    images: Sequence[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Result:
    """A tool's text or object, with `data` for what the model shall not read, such as masks."""

    said: str | Mapping[str, Any] = field(repr=False)
    data: Any = field(default=None, repr=False)


Run = Callable[[Call], "str | Mapping[str, Any] | Result"]


class Toolbox:
    """The tools of one agent.

    Args:
        runs: the tool's name -> what runs it: any callable of this kind. A tool that is not here is unavailable.
        max_chars: of an output that a model reads.
    """

    def __init__(self, runs: Mapping[str, Run], max_chars: int = MAX_CHARS) -> None:
        self._runs = {find_spec(name).name: run for name, run in runs.items()}
        self._max_chars = max_chars

    def run(self, action: Action, question: str, images: Sequence[bytes]) -> Output:
        """The output of a call, or why there is none; see the module's table."""
        try:
            result = self._run(action, question, images)
        except ToolError as error:
            return self._output(action, Result(_sentence(error)), failed=True)
        except FedMedError as error:
            return self._output(action, Result(f"failed: {_sentence(error)}"), failed=True)
        # Tools are other people's programs: what they raise must not end the conversation.
        except Exception as error:  # noqa: BLE001
            return self._output(action, Result(f"failed: {type(error).__name__}"), failed=True)
        return self._output(action, result, failed=False)

    def _run(self, action: Action, question: str, images: Sequence[bytes]) -> Result:
        try:
            spec = find_spec(action.name)
        except ToolError as error:
            raise ToolError(f"failed: {error.message}") from None
        if problems := spec.problems(action.params):
            raise ToolError(f"failed: wrong arguments: {'; '.join(problems)}")
        if spec.name not in self._runs:
            raise ToolError("unavailable: not configured", HOW.get(spec.name, "give the agent something that runs it"))
        said = self._runs[spec.name](Call(action.params, question, images))
        return said if isinstance(said, Result) else Result(said)

    def _output(self, action: Action, result: Result, *, failed: bool) -> Output:
        said = result.said if isinstance(result.said, str) else str(_rounded(result.said))
        text = without_markup(said).strip()
        if len(text) > self._max_chars:
            text = f"{text[: self._max_chars].rstrip()} ..."
        return Output(without_markup(action.name).strip(), text, result.data, failed)


def without_markup(text: str) -> str:
    """The text without what would be refused, or start a turn of its own, when a model is told it."""
    return _MARKUP.sub(" ", text)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 2) if isinstance(value, float) else value


def _sentence(error: FedMedError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message
