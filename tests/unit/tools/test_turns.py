"""Turns: JSON and MMedAgent's text, in and out; and whatever a model writes is a turn or a TurnError."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from fedmed.errors import ToolError, TurnError
from fedmed.tools import (
    SPECS,
    Action,
    Dialogue,
    Output,
    Turn,
    find_spec,
    has_parts,
    read_outputs,
    read_turn,
    write_outputs,
    write_turn,
)
from fedmed.tools.text import MAX_CHARS

TURN = Turn("Look for it.", (Action("grounding dino", {"image": "<imagepath>", "prompts": ["tumor"]}),), "Please wait.")
TEXT = (
    '"thoughts🤔" Look for it.\n'
    '"actions🚀" [{"API_name": "grounding dino", "API_params": {"image": "<imagepath>", "prompts": ["tumor"]}}]\n'
    '"value👉" Please wait.'
)
WORDS = ["nodule", "é 中 🤔", '"quoted"', "it's", "a\nb", "\\", "{}", "[", "0.5", "output: x", "</s>", "\u2028"]


def any_turn(rng: random.Random) -> Turn:
    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randrange(4))).strip()

    def value(depth: int = 0) -> Any:
        plain = [text(), rng.randrange(9), rng.random(), None, True]
        nested = [[value(depth + 1) for _ in range(rng.randrange(3))], {text(): value(depth + 1)}] if depth < 3 else []
        return rng.choice(plain + nested)

    actions = [
        Action(text() or "x", {text(): value() for _ in range(rng.randrange(3))}) for _ in range(rng.randrange(3))
    ]
    return Turn(text(), tuple(actions), text())


def test_the_text_is_what_llava_plus_trains_on() -> None:
    assert write_turn(TURN) == TEXT
    assert read_turn(TEXT) == TURN
    assert read_turn(TEXT.replace('" ', '"')) == TURN, "MMedAgent's evaluation file has no space after a marker"


def test_turns_survive_text_and_json() -> None:
    rng = random.Random(0)
    for _ in range(500):
        turn = any_turn(rng)
        assert read_turn(write_turn(turn)) == turn
        assert Turn.from_json(json.loads(json.dumps(turn.to_json()))) == turn


@pytest.mark.parametrize("part", ['"thoughts🤔"', '"actions🚀"', '"value👉"'])
def test_a_marker_inside_a_text_is_refused_when_written(part: str) -> None:
    for turn in (Turn(f"a {part}", (), ""), Turn("", (), f"{part} b")):
        with pytest.raises(TurnError, match="marker"):
            write_turn(turn)
    with pytest.raises(TurnError, match="characters"):
        write_turn(Turn("", (), "v" * MAX_CHARS))
    inside = Turn("", (Action("x", {"a": part}),), "")
    assert read_turn(write_turn(inside)) == inside, "in an argument it is escaped"


def test_what_llava_plus_also_reads() -> None:
    assert read_turn('"value👉" yes') == Turn("", (), "yes")
    assert read_turn("Sure! " + TEXT) == TURN
    assert read_turn(TEXT.replace('{"API_name"', "{'API_name'")) == TURN
    assert not has_parts("yes") and has_parts('"value👉"')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no part"),
        ("yes", "no part"),
        ('"thoughts🤔" a\n"actions🚀" []', 'no part "value👉"'),
        ('"value👉" a\n"actions🚀" []', "out of order"),
        ('"value👉" a "value👉" b', "twice"),
        # As the published evaluation file has it, a brace short.
        (
            '"actions🚀" [{"API_name": "grounding dino", "API_params": {"prompts": ["lung"]}]\n"value👉"v',
            "not a JSON list",
        ),
        ('"actions🚀" {"API_name": "report"}\n"value👉" v', "not a JSON list"),
        ('"actions🚀" ["report"]\n"value👉" v', "an action is str, expected an object"),
        ('"actions🚀" [{"API_params": {}}]\n"value👉" v', "API_name is missing"),
        ('"actions🚀" [{"API_name": " "}]\n"value👉" v', "API_name is empty"),
        ('"actions🚀" [{"API_name": "x", "API_params": [1]}]\n"value👉" v', "API_params is list"),
        ('"actions🚀" [{"API_name": "x", "API_params": {"a": NaN}}]\n"value👉" v', "not a JSON list"),
        ('"actions🚀" [{"API_name": "x", "API_params": {"a": 1e999}}]\n"value👉" v', "not finite"),
        ('"actions🚀" [{"API_name": "x", "API_params": {"a": "\\ud800"}}]\n"value👉" v', "surrogate"),
        ('"actions🚀" ' + "[" * 100_000 + '\n"value👉" v', "not a JSON list"),
        ('"actions🚀" [{"API_name": "x", "API_params": {"a": ' + "[" * 20 + "]" * 20 + '}}]\n"value👉" v', "deeper"),
        ('"value👉" \ud800', "surrogate"),
        ('"value👉" ' + "v" * MAX_CHARS, "expected at most 262144"),
    ],
)
def test_a_text_that_is_no_turn_says_why(text: str, expected: str) -> None:
    with pytest.raises(TurnError) as caught:
        read_turn(text)
    assert expected in caught.value.message


def test_whatever_a_model_writes_is_a_turn_or_a_turn_error() -> None:
    rng = random.Random(1)
    pieces = [
        *TEXT,
        '"thoughts🤔"',
        '"actions🚀"',
        '"value👉"',
        "\x00",
        "\ud800",
        "[",
        "{",
        "'",
        "1e999",
        "null",
        "NaN",
    ]
    refused = 0
    for _ in range(3000):
        text = list(TEXT)
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(text))
            text[place : place + rng.randrange(3)] = [rng.choice(pieces)]
        try:
            turn = read_turn("".join(text[: rng.randrange(len(text) + 1)] if rng.random() < 0.2 else text))
        except TurnError:
            refused += 1
        else:
            assert read_turn(write_turn(turn)) == turn
    assert 500 < refused < 3000


@pytest.mark.parametrize(
    "data", [None, [], {}, {"value": 1}, {"value": "v", "actions": {}}, {"value": "v", "thoughts": 2}]
)
def test_json_that_is_no_turn_is_refused(data: Any) -> None:
    with pytest.raises(TurnError):
        Turn.from_json(data)


def test_outputs_and_the_question_again() -> None:
    text = write_outputs([Output("grounding dino", "{'boxes': [[0.41, 0.54, 0.76, 0.75]]}")], "Where\nis the tumor?")
    assert text == (
        "grounding dino output: {'boxes': [[0.41, 0.54, 0.76, 0.75]]}\n\nAnswer my first question: Where is the tumor?"
    )
    assert read_outputs(text) == (
        Output("grounding dino", "{'boxes': [[0.41, 0.54, 0.76, 0.75]]}"),
        "Where is the tumor?",
    )
    both = write_outputs([Output("a", "1"), Output("b", "2")], "q")
    assert both == "a output: 1\n\nb output: 2\n\nAnswer my first question: q"
    assert read_outputs(both) == (Output("a", "1\n\nb output: 2"), "q")
    for wrong in ("", "q", "a output: 1", "Answer my first question: q", " output: 1\n\nAnswer my first question: q"):
        with pytest.raises(TurnError, match="no output of a tool"):
            read_outputs(wrong)


def test_a_row_of_the_published_file_comes_back_as_it_was() -> None:
    row = {
        "image_id": "1_t2",
        "image": "1_t2.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\n Where is it?"},
            {"from": "gpt", **TURN.to_json()},
            {"from": "human", "value": "grounding dino output: {}\n\nAnswer my first question: Where is it?"},
            {"from": "gpt", "thoughts": "Thanks.", "actions": [], "value": "Nowhere."},
        ],
    }
    dialogue = Dialogue.from_json(row)
    assert dialogue.exchanges[0] == ("<image>\n Where is it?", TURN)
    assert dialogue.to_json() == row
    plain = {"id": 7, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    assert Dialogue.from_json(plain) == Dialogue("7", "", (("q", Turn("", (), "a")),))
    for wrong in (row["conversations"][:1], row["conversations"][::-1], "x", [1, 2]):
        with pytest.raises(TurnError):
            Dialogue.from_json(row | {"conversations": wrong})


def test_tools_are_found_by_any_of_their_names() -> None:
    assert [
        find_spec(name).name for name in ("BiomedClip", "grounding dino", "grounding dino + medsam", "ChatCAD-R")
    ] == [
        "classification",
        "grounding",
        "segmentation",
        "retrieval",
    ]
    with pytest.raises(ToolError, match="expected one of classification"):
        find_spec("rm -rf")


@pytest.mark.parametrize(
    ("tool", "params", "expected"),
    [
        ("grounding", {"prompts": ["tumor"], "image": "<imagepath>"}, ""),
        ("grounding", {}, "prompts is missing, expected a list of texts"),
        ("grounding", {"prompts": "tumor"}, "prompts is str"),
        ("grounding", {"prompts": []}, "prompts is list"),
        ("grounding", {"prompts": [" "]}, "prompts is list"),
        ("grounding", {"prompts": ["a"], "threshold": 1}, "1 unknown arguments, expected only prompts, image"),
        ("segmentation", {"boxes": [[0, 0.1, 1, 0.5]]}, ""),
        ("segmentation", {"boxes": [[0, 0.1, 1]]}, "boxes is list"),
        ("segmentation", {"boxes": [[0, 0.1, 1, 28]]}, "boxes is list"),
        ("retrieval", {"query": 3}, "query is int, expected a text"),
        ("report", {}, ""),
    ],
)
def test_arguments_are_checked_against_the_table(tool: str, params: dict[str, Any], expected: str) -> None:
    problems = find_spec(tool).problems(params)
    assert bool(problems) == bool(expected)
    assert all(expected in problem for problem in problems)
    assert all(find_spec(alias) == spec for spec in SPECS for alias in (spec.name, *spec.aliases))
