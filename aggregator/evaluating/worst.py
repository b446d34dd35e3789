"""The answers that are farthest from their truths, with small pictures for a page.

    errors = worst_errors(test, answers, parts, count=12, seed=0)

Wrong answers of the lowest score first, of those of the same score a draw by the seed: the first rows of a file are often alike.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

from aggregator.evaluating.dataset import TestSet
from fedmed.metrics.answers import Parts, main_score

SIDE, MOST_IMAGES = 320, 4


@dataclass(frozen=True, slots=True)
class WorstError:
    """One wrong answer. `images`: data URLs, `more_images`: how many are not shown; `group`: what kind of question it was."""

    images: tuple[str, ...]
    more_images: int
    question: str
    answer: str
    truth: str
    score: str
    value: float
    group: str


def worst_errors(
    test: TestSet, answers: Sequence[str], parts: Sequence[Parts], *, count: int, seed: int
) -> list[WorstError]:
    """At most `count`; fewer where fewer answers are wrong."""
    judged = [(place, *main_score(own)) for place, own in enumerate(parts)]
    draws = random.Random(seed)  # noqa: S311  repeatable; nothing is hidden
    wrong = [(value, draws.random(), place, name) for place, name, value in judged if value < 1]
    return [_error(test, answers, place, name, value) for value, _, place, name in sorted(wrong)[:count]]


def _error(test: TestSet, answers: Sequence[str], place: int, name: str, value: float) -> WorstError:
    example = test.examples[place]
    shown = example.images[:MOST_IMAGES]
    kinds = [example.attributes.get(field, "") for field in ("question_type", "organ", "modality")]
    return WorstError(
        images=tuple(_thumbnail(test.image_bytes(ref)) for ref in shown),
        more_images=len(example.images) - len(shown),
        question="\n".join(example.questions),
        answer=answers[place],
        truth=example.answer,
        score=name,
        value=value,
        group=", ".join(filter(None, [example.task, example.answer_type, *kinds])),
    )


def _thumbnail(data: bytes) -> str:
    """As a data URL; a small picture stays as it is."""
    from fedmed.data.images import decode

    picture = decode(data)
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
