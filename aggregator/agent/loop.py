"""The agent's steps: ask the model, run what it asks for, tell it the outputs, until it answers or has had its steps.

    >>> transcript = run_agent(chat, toolbox, "Where is the nodule?", [png])
    >>> transcript.outcome, transcript.answer
    ('answered', 'in the left lung')

| the model writes                      | what happens                                                 | outcome at the end |
| ------------------------------------- | ------------------------------------------------------------ | ------------------ |
| a turn without actions                | its value is the answer                                      | answered           |
| words without any part of a turn      | they are the answer: it was not trained on tools             | plain              |
| nothing                               | no answer                                                    | no_answer          |
| a turn with actions                   | each is run; outputs and the question again are the next     | out_of_steps where |
|                                       | message (fedmed.tools.text)                                  | it was the last    |
| a turn that cannot be read            | it is told why, as the output of `agent`                     | out_of_steps where |
|                                       |                                                              | it was the last    |

A tool's failure is an output like another (aggregator.agent.toolbox). Outputs that do not fit into the model's context are cut in
half until they do, to no less than SHORTEST characters each. Only a model that cannot be asked raises: ServingError.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aggregator.agent.chat import Chat, ContextExceeded, user_message
from aggregator.agent.toolbox import Toolbox, without_markup
from fedmed.errors import TurnError
from fedmed.tools import Output, Turn, has_parts, read_turn, write_outputs

MAX_STEPS = 4
MAX_ACTIONS = 4
SHORTEST = 50
Outcome = Literal["answered", "plain", "no_answer", "out_of_steps"]


@dataclass(frozen=True, slots=True)
class Step:
    """One reply of the model: the turn it is, or why it is none, and what its calls gave."""

    reply: str = field(repr=False)
    turn: Turn | None = field(repr=False)
    problem: str
    outputs: tuple[Output, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "reply": self.reply,
            "turn": self.turn.to_json() if self.turn else None,
            "problem": self.problem,
            "outputs": [
                {"tool": output.tool, "text": output.text, "failed": output.failed, "data": output.data}
                for output in self.outputs
            ],
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Transcript:
    """All that was said. `answer` is empty where the outcome is neither answered nor plain."""

    question: str = field(repr=False)
    steps: tuple[Step, ...]
    outcome: Outcome
    answer: str = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        steps = [step.to_json() for step in self.steps]
        return {"question": self.question, "outcome": self.outcome, "answer": self.answer, "steps": steps}


def run_agent(
    chat: Chat, toolbox: Toolbox, question: str, images: Sequence[bytes], max_steps: int = MAX_STEPS
) -> Transcript:
    """Ask until there is an answer, at most `max_steps` times.

    Args:
        images: PNG or JPEG, of the whole conversation.

    Raises:
        ServingError: the model cannot be asked.
    """
    messages = [user_message(question, images)]
    steps: list[Step] = []
    while len(steps) < max_steps:
        started = time.monotonic()
        reply = _ask(chat, messages, steps[-1].outputs if steps else (), question)
        step = _step(toolbox, reply, question, images, started)
        steps.append(step)
        if not step.outputs:
            answer = step.turn.value if step.turn else step.reply.strip()
            outcome: Outcome = "no_answer" if not answer else "answered" if step.turn else "plain"
            return Transcript(question, tuple(steps), outcome, answer)
        said = {"role": "assistant", "content": without_markup(reply)}
        messages += [said, user_message(write_outputs(step.outputs, question))]
    return Transcript(question, tuple(steps), "out_of_steps", "")


def _ask(chat: Chat, messages: list[dict[str, Any]], outputs: Sequence[Output], question: str) -> str:
    """The model's reply; the last message, which holds `outputs`, is shortened where that makes it fit."""
    longest = max((len(output.text) for output in outputs), default=0)
    while True:
        try:
            return chat(messages)
        except ContextExceeded:
            longest //= 2
            if longest < SHORTEST:
                raise
            cut = [replace(output, text=output.text[:longest]) for output in outputs]
            messages[-1] = user_message(write_outputs(cut, question))


def _step(toolbox: Toolbox, reply: str, question: str, images: Sequence[bytes], started: float) -> Step:
    turn, problem, outputs = None, "", []
    if has_parts(reply):
        try:
            turn = read_turn(reply)
        except TurnError as error:
            problem = error.message
            outputs = [Output("agent", f"your turn cannot be read: {problem}", failed=True)]
    if turn is not None:
        outputs = [toolbox.run(action, question, images) for action in turn.actions[:MAX_ACTIONS]]
        if len(turn.actions) > MAX_ACTIONS:
            outputs.append(Output("agent", f"only the first {MAX_ACTIONS} calls of a turn are run", failed=True))
    return Step(reply, turn, problem, tuple(outputs), round(time.monotonic() - started, 3))
