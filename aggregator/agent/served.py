"""Classification and report by a model, asked as a person would ask it.

    >>> classification(chat)(Call({"labels": ["pleural effusion"]}, "", [png]))
    {'pleural effusion': 'yes'}

| asked for                         | the model is asked                       | output                              |
| --------------------------------- | ---------------------------------------- | ----------------------------------- |
| classification with `labels`,     | `form` of each, image and question alone | {label: the model's answer}         |
| MAX_LABELS at most                |                                          |                                     |
| classification without            | the question of the conversation         | the model's answer                  |
| report                            | REPORT_QUESTION                          | the model's answer                  |

The answer is the model's own words: no score stands behind a label, since the served API has none. A model that was trained on
tool dialogues may answer with a turn: its value counts, and a turn that asks for a tool again is a failure, never an answer.
"""

from __future__ import annotations

from aggregator.agent.chat import Chat, user_message
from aggregator.agent.toolbox import Call, Run
from fedmed.errors import ToolError, TurnError
from fedmed.tools import has_parts, read_turn

LABEL_FORM = "Does this image show {}?"
REPORT_QUESTION = "Write a short report."
MAX_LABELS = 32
_OTHER = "let another version answer it, see --classifier"


def classification(chat: Chat, form: str = LABEL_FORM) -> Run:
    """The tool `classification` by a model; `form` holds {} for a label."""

    def run(call: Call) -> str | dict[str, str]:
        if "labels" in call.params:
            if (count := len(call.params["labels"])) > MAX_LABELS:
                raise ToolError(f"failed: {count} labels, expected at most {MAX_LABELS}")
            return {label: _ask(chat, form.format(label), call) for label in call.params["labels"]}
        return _ask(chat, call.question, call)

    return run


def report(chat: Chat, question: str = REPORT_QUESTION) -> Run:
    """The tool `report` by a model."""

    def run(call: Call) -> str:
        return _ask(chat, question, call)

    return run


def _ask(chat: Chat, question: str, call: Call) -> str:
    """The model's answer in plain words. Raises ToolError where it gives none."""
    if not call.images:
        raise ToolError("failed: there is no image to look at")
    said = chat([user_message(question, call.images)])
    if has_parts(said):
        said = _value(said)
    if not said.strip():
        raise ToolError("failed: the model gave no answer", _OTHER)
    return said.strip()


def _value(said: str) -> str:
    try:
        turn = read_turn(said)
    except TurnError:
        raise ToolError("failed: the model answered with a turn that cannot be read", _OTHER) from None
    if turn.actions:
        raise ToolError("failed: the model asked for a tool in place of an answer", _OTHER)
    return turn.value
