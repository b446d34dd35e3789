"""The two tasks that methods are compared on: real chest X-rays with two answers, phantoms with four.

    load_task("pneumonia") -> Source of PneumoniaMNIST (official split), Dirichlet on the label
    load_task("phantom_side") -> "On which side is the pleural effusion?": none, left, right or both, Dirichlet on the answer

The phantoms are those of the hospitals' domain (fedmed.data.phantom), half of them without an effusion; no public phantom,
which is what the base model has seen, has one. Both tasks are the same for every seed of a run.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator

import numpy as np

from fedmed.config import load_experiment
from fedmed.data.images import encode_png
from fedmed.data.phantom import CHUNK, side_word
from fedmed.data.phantom_image import draw
from fedmed.data.schema import Example, ImageRef, Split
from fedmed.data.sources import Source, load_source

TASKS = ("pneumonia", "phantom_side")
QUESTION = "On which side is the pleural effusion?"
_PHANTOMS: dict[Split, int] = {"train": 2400, "val": 300, "test": 500}


@functools.cache
def load_task(name: str) -> Source:
    """The task's examples, to be shared out among sites by `label`."""
    if name == "pneumonia":
        return load_source(load_experiment("pneumonia").data, 0)
    train, val, test = (tuple(_sides(split, number)) for split, number in _PHANTOMS.items())
    return Source(name, train, val, test, notes=())


def _sides(split: Split, number: int) -> Iterator[Example]:
    rng = np.random.default_rng([0, zlib.crc32(f"side/{split}".encode())])
    for start in range(0, number, CHUNK):
        drawn = draw(min(CHUNK, number - start), rng, "hospital")
        for index, image in enumerate(drawn.images):
            sides = drawn.findings["effusion"][index] > 0
            answer = side_word(sides) if sides.any() else "none"
            reference = ImageRef(data=encode_png(image))
            yield Example(
                patient=f"{split}-{start + index}",
                images=(reference,),
                question=QUESTION,
                answer=answer,
                answer_type="open",
                task="vqa",
                source="phantom",
                split=split,
                attributes={"label": answer},
            )
