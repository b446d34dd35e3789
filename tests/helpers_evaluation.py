"""Small test sets whose scores can be computed by hand. Import as `helpers_evaluation` (see tests/conftest.py)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from aggregator.evaluating.dataset import TestSet
from aggregator.evaluating.overlap import overlap
from aggregator.evaluating.results import Inputs
from fedmed.data.images import encode_png
from fedmed.data.schema import AnswerType, Example, ImageRef, Task


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)


def image(seed: int) -> ImageRef:
    return ImageRef(data=encode_png(pixels(seed)))


def stored_anew(seed: int) -> ImageRef:
    """The same picture in other bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, format="PNG", compress_level=0)
    return ImageRef(data=buffer.getvalue())


def question(
    patient: str,
    truth: str,
    kind: AnswerType = "closed",
    *,
    asked: str = "Is there an effusion?",
    images: Sequence[ImageRef] = (),
    task: Task = "vqa",
    organ: str = "chest",
    choices: tuple[str, ...] = (),
) -> Example:
    attributes = {"organ": organ, "question_type": "presence"}
    return Example(patient, tuple(images), asked, truth, kind, task, "made", "test", attributes, choices=choices)


def made_set(examples: Sequence[Example], train: Sequence[Example] | None = None) -> TestSet:
    return TestSet(
        "made", "test", "by hand", tuple(examples), None, None if train is None else tuple(train), ("a note",)
    )


def inputs(test: TestSet, answers: Sequence[str], **changes: Any) -> Inputs:
    facts: dict[str, Any] = {
        "model": {
            "name": "m:2",
            "asked": "m@champion",
            "sha256": "0" * 64,
            "registered": True,
            "run_id": "run2",
            "trained_on": {},
        },
        "generation": {
            "decoding": "greedy",
            "max_new_tokens": 8,
            "shots": 0,
            "blank": [127, 127, 127],
            "lexicon_version": 1,
            "prompt": "<image>Is there an effusion?",
        },
        "test": test,
        "answers": answers,
        "overlap": overlap(test),
        "controls": {},
        "others": {},
        "extra": {},
        "created": "2026-11-21T20:58:00+00:00",
        "resamples": 200,
    }
    return Inputs(**(facts | changes))
