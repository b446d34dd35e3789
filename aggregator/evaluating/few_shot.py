"""Examples in the prompt, as Med-Flamingo does: answered questions about other patients' images before the question itself.

    user: <image> Is there an effusion?   assistant: yes   ...   user: <image> Is there a fracture?

(Moor et al., Med-Flamingo, 2023.) The examples are drawn from the train split of the data set, for each question anew:

| rule                                                     | why                                                  |
| -------------------------------------------------------- | ---------------------------------------------------- |
| of the question's task, never of its patient             | the answer must not stand in the prompt              |
| none of the question's images, by a hash of their pixels | the same, where one image has two patients' names    |
| drawn by the seed and the question's place               | another model is asked exactly the same              |
| every image stands at its mark, the question's own last  | images of one prompt are told apart by their place   |
"""

from __future__ import annotations

import random

from aggregator.evaluating.dataset import TestSet
from aggregator.evaluating.overlap import image_hashes
from fedmed.data.schema import Example
from fedmed.data.shots import shown_before
from fedmed.errors import DataError


def with_shots(test: TestSet, shots: int, seed: int) -> list[Example]:
    """The test set's examples, each with `shots` answered ones before it; as they are for 0.

    Raises:
        DataError: the train split is unknown, or too small for some question.
    """
    if not shots:
        return list(test.examples)
    if test.train is None:
        raise DataError(
            f"{test.name} has no train split to draw {shots} examples from",
            "evaluate without --shots, or name another set",
        )
    pool = list(zip(test.train, image_hashes(test, test.train), strict=True))
    found = []
    for place, (example, images) in enumerate(zip(test.examples, image_hashes(test, test.examples), strict=True)):
        fit = [
            known
            for known, hashes in pool
            if known.task == example.task and known.patient != example.patient and not hashes & images
        ]
        if len(fit) < shots:
            raise DataError(
                f"{len(fit)} examples of {test.name}'s train split may stand before question {place + 1}, "
                f"expected {shots}",
                "evaluate with fewer --shots",
            )
        draws = random.Random(f"{seed}/{place}")  # noqa: S311  repeatable; nothing is hidden
        found.append(shown_before(draws.sample(fit, shots), example))
    return found
