"""Which images a control shows in place of a question's own: another patient's, or none. Pure; no pixel in sight.

    >>> donors([example_of_p1, example_of_p2], seed=0)
    [1, 0]

| control   | asked                                                                       | what an equal score says               |
| --------- | --------------------------------------------------------------------------- | -------------------------------------- |
| majority  | nothing: the most frequent truth of the question (fedmed.metrics.scores)    | nothing was learnt beyond frequencies  |
| blank     | the same with every image one grey                                          | the image is not used                  |
| shuffled  | the same with the images of another patient, as many as there were          | the image is not read, only its kind   |
| text only | the same without images                                                     | the question alone gives it away       |
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from fedmed.data.schema import Example

CONTROLS = ("majority", "blank", "shuffled", "text_only")


def donors(examples: Sequence[Example], seed: int) -> list[int | None]:
    """For each example the place of one of another patient with as many images; None without images or without such.

    Patients stand in a ring drawn from `seed`, one ring for each number of images; each takes from the next. All examples of a
    patient with the same images therefore get the same others.
    """
    rings: dict[int, dict[str, list[int]]] = {}
    for place, example in enumerate(examples):
        if example.images:
            rings.setdefault(len(example.images), {}).setdefault(example.patient, []).append(place)
    found: list[int | None] = [None] * len(examples)
    for count, owned in sorted(rings.items()):
        ring = sorted(owned)
        random.Random(f"{seed}/{count}").shuffle(ring)  # noqa: S311  repeatable; nothing is hidden
        for patient, giver in zip(ring, ring[1:] + ring[:1], strict=True):
            if patient != giver:
                for place, number in _by_images(examples, owned[patient]):
                    found[place] = owned[giver][number % len(owned[giver])]
    return found


def _by_images(examples: Sequence[Example], places: Sequence[int]) -> list[tuple[int, int]]:
    """(place, number of its image set among the patient's): questions about one image stay about one image."""
    numbers: dict[object, int] = {}
    return [(place, numbers.setdefault(examples[place].images, len(numbers))) for place in places]
