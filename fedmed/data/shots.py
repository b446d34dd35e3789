"""Answered examples before a question, in the prompt: few-shot learning in context, as Med-Flamingo does (Moor et al., 2023). Pure.

    user: <image> Is there an effusion?   assistant: yes   ...   user: <image> Is there a fracture?

>>> asked = shown_before([example_of_another_patient], example)
>>> len(asked.images), len(asked.history)
(2, 1)

The result belongs to the question's patient: what stands before it must be public.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from fedmed.data.schema import IMAGE_MARK, Example, Exchange
from fedmed.errors import DataError


def with_public_shots(examples: Sequence[Example], pool: Sequence[Example], shots: int, seed: int) -> list[Example]:
    """Each example with `shots` of the public `pool` before it, of its own task, drawn by the seed and the example's place.

    Raises:
        DataError: the pool has fewer of an example's task that show none of its images.
    """
    if not shots:
        return list(examples)
    by_task: dict[str, list[Example]] = {}
    for known in pool:
        by_task.setdefault(known.task, []).append(known)
    found = []
    for place, example in enumerate(examples):
        own = set(example.images)
        fit = [known for known in by_task.get(example.task, []) if own.isdisjoint(known.images)]
        if len(fit) < shots:
            raise DataError(
                f"the public pool has {len(fit)} examples of task {example.task} with other images, expected {shots}",
                "set data.shots lower, or take a source with a larger validation split",
            )
        draws = random.Random(f"shots/{seed}/{place}")  # noqa: S311  repeatable; nothing is hidden
        found.append(shown_before(draws.sample(fit, shots), example))
    return found


def shown_before(shots: Sequence[Example], example: Example) -> Example:
    """The example with the others' questions and answers as its history, every image at its mark, its own last."""
    marked = [_marked(each) for each in (*shots, example)]
    said = [exchange for each in marked[:-1] for exchange in (*each.history, Exchange(each.question, each.answer))]
    return replace(
        marked[-1],
        images=tuple(ref for each in marked for ref in each.images),
        history=(*said, *marked[-1].history),
    )


def _marked(example: Example) -> Example:
    """With a mark for each image: where the questions have none, all before the first."""
    if sum(question.count(IMAGE_MARK) for question in example.questions) == len(example.images):
        return example
    questions = [" ".join(question.replace(IMAGE_MARK, " ").split()) for question in example.questions]
    questions[0] = " ".join([*([IMAGE_MARK] * len(example.images)), questions[0]])
    history = tuple(Exchange(question, said.answer) for question, said in zip(questions, example.history, strict=False))
    return replace(example, history=history, question=questions[-1])
