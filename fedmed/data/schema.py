"""One typed example: what every importer makes and what training and evaluation read.

Legend: a *patient* owns *records* (examples); an example has zero or more images, one question and one answer. A
conversation of k answers is k examples: each holds what was said before as its `history`.

    >>> Example(patient="p1", images=(), question="Is there an opacity?", answer="yes", answer_type="closed",
    ...         task="vqa", source="phantom")
    Example(task='vqa', answer_type='closed', source='phantom')

The repr shows no patient field on purpose: it must be safe in a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

Task = Literal["vqa", "choice", "report", "caption", "instruct", "tool"]
AnswerType = Literal["closed", "open"]
Split = Literal["train", "val", "test"]
TASKS: tuple[str, ...] = get_args(Task)
ANSWER_TYPES: tuple[str, ...] = get_args(AnswerType)
SPLITS: tuple[str, ...] = get_args(Split)
# Stands in a question where the next image belongs; see Example.images.
IMAGE_MARK = "<image>"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image before it is decoded: exactly one of the two.

    Attributes:
        path: a file on disk, relative to the manifest's folder.
        data: encoded bytes (PNG or JPEG), as importers make them.
    """

    path: str = field(default="", repr=False)
    data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Exchange:
    """An earlier question of a conversation (or the output of a tool), and what was answered."""

    question: str = field(repr=False)
    answer: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Example:
    """One question (or instruction) with its answer and images.

    Attributes:
        patient: identifier of the patient inside the site; the unit of privacy. Never leaves the site.
        images: in the order in which the prompt places them: one at each IMAGE_MARK of the questions, those of the
            history first; where no question has a mark, all before the first question.
        question: question or instruction.
        answer: the text the model must give.
        answer_type: `closed` (one of a few, such as yes/no) or `open`.
        task: what kind of work the example is.
        source: name of the importer that made it.
        split: the official split of the source, where it has one.
        attributes: further fields to partition or group by, such as `label` or `organ`.
        history: the exchanges before the question, oldest first.
        choices: of a multiple-choice question, in the order A, B, ...; the answer is one of them. Empty for others.
    """

    patient: str = field(repr=False)
    images: tuple[ImageRef, ...] = field(repr=False)
    question: str = field(repr=False)
    answer: str = field(repr=False)
    answer_type: AnswerType
    task: Task
    source: str
    split: Split = field(default="train", repr=False)
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    history: tuple[Exchange, ...] = field(default=(), repr=False)
    choices: tuple[str, ...] = field(default=(), repr=False)

    @property
    def questions(self) -> tuple[str, ...]:
        """Those of the history, then the example's own."""
        return (*(said.question for said in self.history), self.question)


def marks_fit(example: Example) -> bool:
    """Whether the questions have no image mark, or exactly one for each image."""
    marks = sum(question.count(IMAGE_MARK) for question in example.questions)
    return marks in (0, len(example.images))
