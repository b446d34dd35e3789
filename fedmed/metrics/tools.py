"""Scores of tool dialogues: was the right tool asked for, with the right arguments, and is the final answer right? Pure.

    >>> truth = write_turn(Turn("t", (Action("report"),), "v"))
    >>> tool_scores([truth, "no turn"], [truth, truth]).tool_accuracy
    0.5

Each item is one turn: the text a model gave and the true one, both as fedmed.tools writes them.

| score           | share                                                                  | of                                    |
| --------------- | ---------------------------------------------------------------------- | ------------------------------------- |
| readable        | that are a turn at all                                                 | all items                             |
| tool_accuracy   | that ask for the very tools that the truth asks for, or for none       | all items                             |
| arguments_valid | whose every call names a known tool with arguments that its table has  | items whose answer calls a tool       |
| arguments_equal | with the same tools and equal arguments                                | items whose truth calls a tool        |
| answer_exact,   | fedmed.metrics.scores of the final words; 0 for an answer that is no   | items whose truth calls no tool       |
| answer_f1       | turn, or calls a tool instead of answering                             |                                       |

A tool counts under its own name, whichever alias was used; several tools of one turn count as one choice, `a+b`. Arguments are
equal when their texts are after `normalise_answer`, numbers to 0.01, and lists in any order; `image` is a placeholder and
left out. A share of nothing is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmed.errors import DataError, TurnError
from fedmed.metrics.scores import exact_match, normalise_answer, token_f1
from fedmed.tools import UNKNOWN, Action, Turn, find_spec, read_turn, tools_of

UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class ToolScores:
    """Scores as in the module's table, with the number of items behind each.

    Attributes:
        num_items: all turns. num_called: answers that call a tool. num_calls: truths that do. num_answers: truths that do not.
        confusion: true tool -> chosen tool -> turns; besides tools there are `none`, `unreadable` and `unknown`.
    """

    num_items: int
    num_called: int
    num_calls: int
    num_answers: int
    readable: float
    tool_accuracy: float
    arguments_valid: float | None
    arguments_equal: float | None
    answer_exact: float | None
    answer_f1: float | None
    confusion: Mapping[str, Mapping[str, int]]


def tool_scores(predictions: Sequence[str], truths: Sequence[str]) -> ToolScores:
    """Scores of one text per true turn, in the same order.

    Raises:
        DataError: nothing to score, another number of predictions, or a truth that is no turn.
    """
    if not truths or len(predictions) != len(truths):
        raise DataError(f"{len(predictions)} predictions for {len(truths)} turns, expected one each and at least one")
    pairs = [
        (_read(text), _true_turn(truth, number))
        for number, (text, truth) in enumerate(zip(predictions, truths, strict=True), 1)
    ]
    called = [given for given, _ in pairs if given is not None and given.actions]
    calls = [(given, truth) for given, truth in pairs if truth.actions]
    answers = [(_final(given), truth.value) for given, truth in pairs if not truth.actions]
    return ToolScores(
        num_items=len(pairs),
        num_called=len(called),
        num_calls=len(calls),
        num_answers=len(answers),
        readable=sum(given is not None for given, _ in pairs) / len(pairs),
        tool_accuracy=sum(chosen(given) == chosen(truth) for given, truth in pairs) / len(pairs),
        arguments_valid=_mean([all(_is_valid(action) for action in given.actions) for given in called]),
        arguments_equal=_mean([given is not None and _same_calls(given, truth) for given, truth in calls]),
        answer_exact=_mean([given is not None and exact_match(given, truth) for given, truth in answers]),
        answer_f1=_mean([0.0 if given is None else token_f1(given, truth) for given, truth in answers]),
        confusion=_confusion(pairs),
    )


def chosen(turn: Turn | None) -> str:
    """The tools that a turn asks for, as one word."""
    return UNREADABLE if turn is None else tools_of(turn)


def _read(text: str) -> Turn | None:
    try:
        return read_turn(text)
    except TurnError:
        return None


def _true_turn(text: str, number: int) -> Turn:
    try:
        return read_turn(text)
    except TurnError as error:
        raise DataError(f"true turn {number} is none: {error.message}", "score examples of task `tool` alone") from None


def _name(action: Action) -> str:
    return tools_of(Turn("", (action,), ""))


def _is_valid(action: Action) -> bool:
    return _name(action) != UNKNOWN and not find_spec(action.name).problems(action.params)


def _same_calls(given: Turn, truth: Turn) -> bool:
    """Whether every call has its equal in the other turn; a tool of no table is compared by its own name."""
    return sorted(map(_comparable, given.actions)) == sorted(map(_comparable, truth.actions))


def _comparable(action: Action) -> str:
    name = _name(action)
    params = {key: value for key, value in action.params.items() if key != "image"}
    return repr((normalise_answer(action.name) if name == UNKNOWN else name, _folded(params)))


def _folded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return sorted((key, repr(_folded(item))) for key, item in value.items())
    if isinstance(value, list | tuple):
        folded = [_folded(item) for item in value]
        # The sides of a box have an order; texts and boxes of a list have none.
        return folded if all(isinstance(item, int | float) for item in folded) else sorted(folded, key=repr)
    if isinstance(value, float):
        rounded = round(value, 2)
        return int(rounded) if rounded.is_integer() else rounded
    return normalise_answer(value) if isinstance(value, str) else value


def _final(turn: Turn | None) -> str | None:
    return turn.value if turn is not None and not turn.actions else None


def _confusion(pairs: Sequence[tuple[Turn | None, Turn]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for given, truth in pairs:
        row = counts.setdefault(chosen(truth), {})
        row[chosen(given)] = row.get(chosen(given), 0) + 1
    return counts


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
