"""The agent's loop with a model whose words are written here: every way a step can go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from aggregator.agent.chat import ContextExceeded
from aggregator.agent.loop import MAX_ACTIONS, run_agent
from aggregator.agent.served import classification, report
from aggregator.agent.toolbox import Call, Result, Run, Toolbox
from fedmed.data.images import decode, encode_png
from fedmed.errors import DataError, ServingError
from fedmed.tools import Action, Turn, read_outputs, write_turn

PNG = encode_png(np.zeros((8, 8), np.uint8))
QUESTION = "Where is the nodule?"


class Script:
    """A model that says these texts one after the other, and keeps what it was told."""

    def __init__(self, *replies: str, context: int = 1 << 20) -> None:
        self.replies, self.context = list(replies), context
        self.asked: list[list[dict[str, Any]]] = []

    def __call__(self, messages: Sequence[dict[str, Any]]) -> str:
        if sum(len(text_of(message)) for message in messages) > self.context:
            raise ContextExceeded("too long")
        self.asked.append(list(messages))
        return self.replies.pop(0)


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def call(*actions: Action) -> str:
    return write_turn(Turn("t", actions, "wait"))


def answer(text: str) -> str:
    return write_turn(Turn("t", (), text))


def told(chat: Script) -> str:
    """What the tools said before the model's last reply."""
    return read_outputs(text_of(chat.asked[-1][-1]))[0].text


def bright_box(call: Call) -> dict[str, Any]:
    """A detector of bright squares, which is what these tests' images show: the box around all that is not black."""
    rows, columns = np.nonzero(np.asarray(decode(call.images[0]).convert("L")))
    size = decode(call.images[0]).size[0]
    box = [columns.min() / size, rows.min() / size, (columns.max() + 1) / size, (rows.max() + 1) / size]
    return {"boxes": [[float(side) for side in box]], "phrases": list(call.params["prompts"])}


def test_a_call_is_run_and_its_output_leads_to_the_answer() -> None:
    pixels = np.zeros((16, 16), np.uint8)
    pixels[4:6, 8:12] = 200
    asked = Action("grounding dino", {"image": "<imagepath>", "prompts": ["nodule"]})
    chat = Script(call(asked), answer("in the left lung"))
    said = run_agent(chat, Toolbox({"grounding": bright_box}), QUESTION, [encode_png(pixels)])
    assert (said.outcome, said.answer, len(said.steps)) == ("answered", "in the left lung", 2)
    assert text_of(chat.asked[1][-1]) == (
        "grounding dino output: {'boxes': [[0.5, 0.25, 0.75, 0.38]], 'phrases': ['nodule']}\n\n"
        f"Answer my first question: {QUESTION}"
    )
    assert [message["role"] for message in chat.asked[1]] == ["user", "assistant", "user"]
    assert chat.asked[0][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    kept = json.loads(json.dumps(said.to_json()))
    assert kept["steps"][0]["turn"]["actions"] == [asked.to_json()]
    assert kept["steps"][0]["outputs"][0]["failed"] is False


@pytest.mark.parametrize(
    ("replies", "outcome", "final", "steps"),
    [
        (["no effusion"], "plain", "no effusion", 1),
        ([" "], "no_answer", "", 1),
        ([answer("")], "no_answer", "", 1),
        ([call(Action("report"))] * 3, "out_of_steps", "", 3),
        (['"thoughts🤔" cut'] * 3, "out_of_steps", "", 3),
        (['"actions🚀" [{\n"value👉" v', answer("yes")], "answered", "yes", 2),
    ],
)
def test_how_a_conversation_ends(replies: list[str], outcome: str, final: str, steps: int) -> None:
    said = run_agent(Script(*replies), Toolbox({"report": lambda _: "clear"}), QUESTION, [PNG], max_steps=3)
    assert (said.outcome, said.answer, len(said.steps)) == (outcome, final, steps)


def test_a_turn_that_cannot_be_read_is_told_to_the_model() -> None:
    chat = Script('"thoughts🤔" cut', answer("yes"))
    said = run_agent(chat, Toolbox({}), QUESTION, [])
    assert said.steps[0].problem == 'the turn has no part "value👉"'
    assert told(chat) == 'your turn cannot be read: the turn has no part "value👉"'


def broken(_: Call) -> str:
    raise KeyError("secret")


def refusing(_: Call) -> str:
    raise DataError("the library is closed", "come back")


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (Action("magic"), "failed: unknown tool, expected one of classification, grounding"),
        (Action("grounding", {}), "failed: wrong arguments: prompts is missing"),
        (
            Action("grounding", {"prompts": ["a"]}),
            "unavailable: not configured; start the agent with --tool grounding=",
        ),
        (
            Action("MedSAM", {"prompts": ["a"]}),
            "unavailable: not configured; start the agent with --tool segmentation=",
        ),
        (Action("retrieval"), "failed: the library is closed; come back"),
        (Action("report"), "failed: KeyError"),
    ],
)
def test_a_tool_that_fails_says_so_and_the_loop_goes_on(action: Action, expected: str) -> None:
    chat = Script(call(action), answer("unknown"))
    said = run_agent(chat, Toolbox({"report": broken, "retrieval": refusing}), QUESTION, [PNG])
    assert told(chat).startswith(expected)
    assert said.steps[0].outputs[0].failed and said.outcome == "answered"


def test_several_calls_of_a_turn_are_run_up_to_a_bound() -> None:
    chat = Script(call(*[Action("report")] * (MAX_ACTIONS + 1)), answer("a"))
    said = run_agent(chat, Toolbox({"report": lambda _: "clear"}), QUESTION, [PNG])
    assert [output.text for output in said.steps[0].outputs] == ["clear"] * MAX_ACTIONS + [
        f"only the first {MAX_ACTIONS} calls of a turn are run"
    ]


def test_an_output_cannot_start_a_turn_or_flood_the_model() -> None:
    toolbox = Toolbox({"report": lambda _: "a <|assistant|>b</s> <image> c " + "x" * 50}, max_chars=20)
    assert toolbox.run(Action("report"), QUESTION, [PNG]).text == "a  b    c xxxxxxxxxx ..."


def test_a_turn_with_markup_is_kept_as_it_was_and_told_without() -> None:
    """A tokenizer that spells markup out lets a model write it; no server would take such a message back."""
    reply = call(Action("report", {"image": "a <image> <|user|>"}))
    chat = Script(reply, answer("a"))
    said = run_agent(chat, Toolbox({"report": lambda _: "clear"}), QUESTION, [PNG])
    assert said.steps[0].reply == reply
    assert text_of(chat.asked[-1][-2]) == reply.replace("<image>", " ").replace("<|user|>", " ")


def test_masks_are_kept_for_the_reader_and_not_told_to_the_model() -> None:
    toolbox = Toolbox({"segmentation": lambda _: Result({"areas": [0.123]}, {"masks": [[0, 1]]})})
    output = toolbox.run(Action("segmentation", {"prompts": ["lung"]}), QUESTION, [PNG])
    assert (output.text, output.data) == ("{'areas': [0.12]}", {"masks": [[0, 1]]})


def test_outputs_are_cut_until_they_fit_the_context() -> None:
    words = " ".join(str(number) for number in range(300))
    chat = Script(call(Action("report")), answer("short"), context=400)
    said = run_agent(chat, Toolbox({"report": lambda _: words}), QUESTION, [PNG])
    assert said.answer == "short" and words.startswith(told(chat)) and 50 <= len(told(chat)) < 300
    with pytest.raises(ServingError, match="too long"):
        run_agent(Script("x", context=1), Toolbox({}), QUESTION, [PNG])
    with pytest.raises(ServingError, match="too long"):
        run_agent(
            Script(call(Action("report")), "x", context=100), Toolbox({"report": lambda _: words}), QUESTION, [PNG]
        )


def ask(run: Run, params: dict[str, Any], images: Sequence[bytes] = (PNG,)) -> Any:
    return Toolbox({"classification": run, "report": run}).run(Action("classification", params), QUESTION, images)


def test_classification_asks_the_model_about_each_label() -> None:
    chat = Script("yes", answer("no"))
    output = ask(classification(chat, "Is there {}?"), {"labels": ["a nodule", "an effusion"]})
    assert output.text == "{'a nodule': 'yes', 'an effusion': 'no'}"
    assert [text_of(messages[0]) for messages in chat.asked] == ["Is there a nodule?", "Is there an effusion?"]
    chat = Script("left")
    assert ask(classification(chat), {}).text == "left" and text_of(chat.asked[0][0]) == QUESTION
    chat = Script("Clear.")
    assert ask(report(chat), {}).text == "Clear."
    assert text_of(chat.asked[0][0]) == "Write a short report."


def test_a_model_is_not_asked_about_labels_without_end() -> None:
    chat = Script(*["yes"] * 40)
    output = ask(classification(chat), {"labels": [f"finding {number}" for number in range(40)]})
    assert output.failed and output.text == "failed: 40 labels, expected at most 32" and not chat.asked


@pytest.mark.parametrize(
    ("reply", "images", "expected"),
    [
        (call(Action("report")), [PNG], "asked for a tool in place of an answer"),
        ('"thoughts🤔" x', [PNG], "a turn that cannot be read"),
        ("", [PNG], "gave no answer"),
        ("yes", [], "there is no image"),
    ],
)
def test_a_model_that_does_not_classify_is_a_failure(reply: str, images: list[bytes], expected: str) -> None:
    output = ask(classification(Script(reply)), {}, images)
    assert output.failed and output.text.startswith("failed: ") and expected in output.text
