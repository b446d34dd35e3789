"""Tool dialogues over hospital phantoms: questions that need one tool, or none, with the right turns as answers.

    >>> first, second = itertools.islice(phantom_tool_examples(1, seed=0, split="train"), 2)
    >>> first.task, first.attributes["tool"], second.attributes["turn"]
    ('tool', 'segmentation', 'answer')

Every phantom has two dialogues of two kinds. A dialogue with a tool is two examples: the call, and the answer after the output.

| kind           | asks for                              | the output holds, and the answer says                                  |
| -------------- | ------------------------------------- | -----------------------------------------------------------------------|
| classification | whether a finding is there            | yes or no, as drawn                                                    |
| grounding      | where the lungs or the opacity are    | boxes around what was drawn, in a 7 x 7 division of the image          |
| segmentation   | how much of the image is lung         | the share that was drawn                                               |
| report         | a report                              | effusion, lungs and heart, as drawn                                    |
| retrieval      | what a finding is                     | a sentence of GLOSSARY                                                 |
| none           | nothing of a tool                     | no output: the first turn is the answer                                |

What is learnt is which tool to ask for and with which arguments: the outputs are the truth, not those of a real tool.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedmed.data.images import encode_png
from fedmed.data.phantom import CHUNK, REPORT_QUESTIONS, records_of, side_word, yes_no
from fedmed.data.phantom_image import Drawn, draw
from fedmed.data.schema import Example, Exchange, ImageRef, Split
from fedmed.tools import NONE, Action, Output, Turn, write_outputs, write_turn

DIALOGUES = 2  # of one phantom
KINDS = ("classification", "grounding", "segmentation", "report", "retrieval", NONE)
FINDINGS = {
    "effusion": "pleural effusion",
    "nodule": "nodule",
    "consolidation": "consolidation",
    "cardiomegaly": "enlarged heart",
}
GLOSSARY = {
    "pleural effusion": "A pleural effusion is fluid between the lung and the chest wall.",
    "nodule": "A nodule is a small round opacity in the lung.",
    "consolidation": "Consolidation is lung that is filled with fluid in place of air.",
    "cardiomegaly": "Cardiomegaly is a heart that is larger than normal.",
    "pneumothorax": "A pneumothorax is air between the lung and the chest wall.",
    "atelectasis": "Atelectasis is lung that has lost its air.",
}
CLASSIFY = ("Does this chest X-ray show {}?", "Is {} visible in this image?", "Is there {}?")
GROUND = ("Where {}?", "In which part of the image {}?")
SEGMENT = ("How much of the image is lung?", "Outline the lungs.", "How large are the lungs?")
LOOK_UP = ("What is {}?", "What does {} mean?")
# What a turn says beside its call or its answer.
WAIT, ANSWERED, NO_TOOL = "One moment.", "The tool has answered.", "No tool is needed."
SMALL_TALK = {"Thank you.": "You are welcome.", "Hello.": "Hello.", "Which kind of image is this?": "A chest X-ray."}


@dataclass(frozen=True, slots=True)
class _Case:
    """A question, the call that it needs (None for no tool), what the tool says, and the final answer."""

    question: str
    action: Action | None
    output: str
    answer: str


def phantom_tool_examples(num_patients: int, seed: int, *, split: Split) -> Iterator[Example]:
    """Examples of `num_patients` phantoms of the hospitals' domain; seed and split fix everything, splits share no phantom."""
    rng = np.random.default_rng([seed, zlib.crc32(f"tools/{split}".encode())])
    for start in range(0, num_patients, CHUNK):
        drawn = draw(min(CHUNK, num_patients - start), rng, "hospital")
        for index, image in enumerate(drawn.images):
            label = "effusion" if drawn.findings["effusion"][index].any() else "normal"
            picture = ImageRef(data=encode_png(image))
            for kind in rng.choice(KINDS, DIALOGUES, replace=False):
                case = _case(str(kind), drawn, index, rng)
                yield from _examples(case, f"{split}-{start + index}", picture, str(kind), label, split)


def needs(tool: str) -> str:
    """The thought before a call."""
    return f"I need {tool}."


def _case(kind: str, drawn: Drawn, index: int, rng: np.random.Generator) -> _Case:
    if kind == "classification":
        return _classification(drawn, index, rng)
    if kind == "grounding":
        return _grounding(drawn, index, rng)
    if kind == "segmentation":
        share = round(float(drawn.lungs[index].mean()), 2)
        action = Action(kind, {"prompts": ["lungs"]})
        said = str({"areas": [share], "phrases": ["lungs"]})
        return _Case(_one(SEGMENT, rng), action, said, f"The lungs cover {share} of the image.")
    if kind == "report":
        report = _report(drawn, index, rng)
        return _Case(_one(REPORT_QUESTIONS, rng), Action(kind), report, report)
    if kind == "retrieval":
        subject = _one(tuple(GLOSSARY), rng)
        sentence = GLOSSARY[subject]
        return _Case(
            _one(LOOK_UP, rng).format(_with_article(subject)), Action(kind, {"query": subject}), sentence, sentence
        )
    question = _one(tuple(SMALL_TALK), rng)
    return _Case(question, None, "", SMALL_TALK[question])


def _classification(drawn: Drawn, index: int, rng: np.random.Generator) -> _Case:
    name = _one(tuple(FINDINGS), rng)
    finding, truth = FINDINGS[name], yes_no(drawn.findings[name][index].any())
    question = _one(CLASSIFY, rng).format(_with_article(finding))
    return _Case(question, Action("classification", {"labels": [finding]}), str({finding: truth}), truth)


def _grounding(drawn: Drawn, index: int, rng: np.random.Generator) -> _Case:
    """Where the lungs are, or the opacity where there is one that fills a cell."""
    opacity = drawn.opacity[index]
    thing, cells = "lungs", drawn.lungs[index] > 0.5
    if opacity.max() > 0.2 and rng.random() < 0.5:
        thing, cells = "opacity", opacity > opacity.max() / 2
    boxes = _boxes(cells)
    question = _one(GROUND, rng).format("are the lungs" if thing == "lungs" else "is the opacity")
    said = str({"boxes": boxes, "phrases": [thing] * len(boxes)})
    noun = f"The {thing} {'are' if thing == 'lungs' else 'is'}"
    answer = f"{noun} at {' and '.join(map(str, boxes))}." if boxes else f"{noun} not found."
    return _Case(question, Action("grounding", {"prompts": [thing]}), said, answer)


def _boxes(cells: np.ndarray) -> list[list[float]]:
    """A box around the cells of each half of the image, as [left, top, right, bottom] in shares; bool [7, 7] in."""
    size, found = len(cells), []
    for half in (slice(0, (size + 1) // 2), slice((size + 1) // 2, size)):
        rows, columns = np.nonzero(cells[:, half])
        if len(rows):
            columns = columns + (half.start or 0)
            sides = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            found.append([round(float(side) / size, 2) for side in sides])
    return found


def _report(drawn: Drawn, index: int, rng: np.random.Generator) -> str:
    """A phantom's report, with the effusion that public phantoms do not have."""
    sides = drawn.findings["effusion"][index] > 0
    side = side_word(sides).replace("both", "bilateral") if sides.any() else ""
    effusion = f"There is {side} pleural effusion. " if side else "There is no pleural effusion. "
    return effusion + next(record[1] for record in records_of(drawn, index, rng, "public") if record[3] == "report")


def _examples(case: _Case, patient: str, image: ImageRef, kind: str, label: str, split: Split) -> Iterator[Example]:
    def example(asked: str, said: Turn, turn: str, tool: str, *history: Exchange) -> Example:
        return Example(
            patient=patient,
            images=(image,),
            question=asked,
            answer=write_turn(said),
            answer_type="open",
            task="tool",
            source="phantom_tools",
            split=split,
            attributes={"label": label, "question_type": kind, "tool": tool, "turn": turn},
            history=history,
        )

    if case.action is None:
        yield example(case.question, Turn(NO_TOOL, (), case.answer), "answer", NONE)
        return
    call = example(case.question, Turn(needs(kind), (case.action,), WAIT), "call", kind)
    yield call
    told = write_outputs([Output(kind, case.output)], case.question)
    before = Exchange(case.question, call.answer)
    yield example(told, Turn(ANSWERED, (), case.answer), "answer", NONE, before)


def _one(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _with_article(noun: str) -> str:
    if noun in ("consolidation", "cardiomegaly", "atelectasis"):
        return noun
    return f"an {noun}" if noun.startswith("enlarged") else f"a {noun}"
