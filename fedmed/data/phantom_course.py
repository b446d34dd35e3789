"""Hospital phantoms as a whole course: captions, conversations, choices and questions about the same patients.

    >>> sorted({item.task for item in course_examples(1, seed=0, split="train")})
    ['caption', 'choice', 'instruct', 'vqa']

What the stages of a recipe train on, one after the other, where no real data may be used: the tests and the tiny recipes. Each
patient has one image and one record of each kind; the truth is that of fedmed.data.phantom's hospitals, whose effusions the
embedded base model has never seen.

| task     | the model is asked                                    | and answers                                       |
| -------- | ----------------------------------------------------- | ------------------------------------------------- |
| caption  | to describe the image                                 | one sentence on the pleura, one on the heart      |
| instruct | after an exchange on the effusion, which side it is on | a side, or none                                  |
| choice   | which of four findings the image shows, A to D        | the choice's text                                 |
| vqa      | whether there is an effusion                          | yes or no                                         |
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from fedmed.data.images import encode_png
from fedmed.data.phantom import CHUNK, HOSPITAL_QUESTION, REPORT_QUESTIONS, side_word, yes_no
from fedmed.data.phantom_image import Drawn, draw
from fedmed.data.schema import Example, Exchange, ImageRef, Split

COURSE = "phantom_course"
CHOICES = ("no effusion", "left effusion", "right effusion", "effusion on both sides")
CHOICE_QUESTION = "What does this chest X-ray show?"
_SIDES = {"left": 1, "right": 2, "both": 3}
_LETTERS = "ABCD"


def course_examples(num_patients: int, seed: int, *, split: Split) -> Iterator[Example]:
    """Examples of `num_patients` phantom patients, in the order of the table; splits and seeds share no phantom."""
    rng = np.random.default_rng([seed, zlib.crc32(f"course/{split}".encode())])
    for start in range(0, num_patients, CHUNK):
        drawn = draw(min(CHUNK, num_patients - start), rng, "hospital")
        for index, image in enumerate(drawn.images):
            reference = ImageRef(data=encode_png(image))
            yield from _records(f"{split}-{start + index}", reference, drawn, index, rng, split)


def _records(
    patient: str, image: ImageRef, drawn: Drawn, index: int, rng: np.random.Generator, split: Split
) -> Iterator[Example]:
    sides = drawn.findings["effusion"][index] > 0
    found, side = bool(sides.any()), side_word(sides)
    heart = bool((drawn.findings["cardiomegaly"][index] > 0).any())

    def example(task: str, question: str, answer: str, **more: object) -> Example:
        shared = {
            "patient": patient,
            "images": (image,),
            "answer_type": "open",
            "source": COURSE,
            "split": split,
            "attributes": {"label": "effusion" if found else "normal", "question_type": task},
        }
        return Example(**(shared | {"task": task, "question": question, "answer": answer} | more))  # type: ignore[arg-type]

    yield example("caption", REPORT_QUESTIONS[rng.integers(len(REPORT_QUESTIONS))], _caption(found, side, heart))
    asked = Exchange(HOSPITAL_QUESTION, yes_no(found))
    yield example("instruct", "On which side is it?", side if found else "none", history=(asked,))
    place = _SIDES[side] if found else 0
    yield example("choice", _lettered(), CHOICES[place], choices=CHOICES, answer_type="closed")
    yield example("vqa", HOSPITAL_QUESTION, yes_no(found), answer_type="closed")


def _caption(found: bool, side: str, heart: bool) -> str:
    pleura = f"There is a {side.replace('both', 'bilateral')} pleural effusion." if found else "No pleural effusion."
    return f"{pleura} The heart is {'enlarged' if heart else 'normal in size'}."


def _lettered() -> str:
    listed = " ".join(f"{letter}: {choice}" for letter, choice in zip(_LETTERS, CHOICES, strict=True))
    return f"{CHOICE_QUESTION} {listed}"
