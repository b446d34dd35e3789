"""The two tasks that methods are compared on: real chest X-rays with two answers, phantoms with several.

    load_task("pneumonia") -> Source of PneumoniaMNIST (official split), Dirichlet on the label
    load_task("phantom_findings") -> hospital phantoms, one of three questions each, Dirichlet on the answer

A phantom is asked for an effusion (yes, no), for an enlarged heart (yes, no) or for its nodules (zero to three), in turn. The
public phantoms, which are what the base model has seen, have no effusion and come from another machine. Both tasks are the same
for every seed of a run. A question whose answers the base model was never asked for in such words is of no use here: no method
learns it in so few steps (the side of the effusion, or four words for two findings, stay at or below the majority answer).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator

import numpy as np

from fedmed.config import load_experiment
from fedmed.data.images import encode_png
from fedmed.data.phantom import CHUNK, HOSPITAL_QUESTION, NUMBERS, yes_no
from fedmed.data.phantom_image import Drawn, draw
from fedmed.data.schema import AnswerType, Example, ImageRef, Split
from fedmed.data.sources import Source, load_source

TASKS = ("pneumonia", "phantom_findings")
_PHANTOMS: dict[Split, int] = {"train": 2400, "val": 450, "test": 600}


@functools.cache
def load_task(name: str) -> Source:
    """The task's examples, to be shared out among sites by `label`."""
    if name == "pneumonia":
        return load_source(load_experiment("pneumonia").data, 0)
    train, val, test = (tuple(_findings(split, number)) for split, number in _PHANTOMS.items())
    return Source(name, train, val, test, notes=())


def _findings(split: Split, number: int) -> Iterator[Example]:
    rng = np.random.default_rng([0, zlib.crc32(f"findings/{split}".encode())])
    for start in range(0, number, CHUNK):
        drawn = draw(min(CHUNK, number - start), rng, "hospital")
        for index, image in enumerate(drawn.images):
            question, answer, answer_type = _asked(drawn, index, (start + index) % 3)
            yield Example(
                patient=f"{split}-{start + index}",
                images=(ImageRef(data=encode_png(image)),),
                question=question,
                answer=answer,
                answer_type=answer_type,
                task="vqa",
                source="phantom",
                split=split,
                attributes={"label": answer},
            )


def _asked(drawn: Drawn, index: int, kind: int) -> tuple[str, str, AnswerType]:
    """Question, answer and its type."""
    if kind == 0:
        return HOSPITAL_QUESTION, yes_no(drawn.findings["effusion"][index].any()), "closed"
    if kind == 1:
        return "How many nodules are there?", NUMBERS[drawn.nodules[index]], "open"
    return "Is there an enlarged heart?", yes_no(drawn.findings["cardiomegaly"][index].any()), "closed"
