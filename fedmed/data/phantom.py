"""Phantom patients: drawn chest-like images with questions, answers and reports whose truth is known exactly.

    >>> records = list(phantom_examples(2, seed=0, domain="public", split="train"))
    >>> sorted({record.task for record in records})
    ['report', 'vqa']

`public` phantoms are what the embedded base model is pre-trained on. `hospital` phantoms stand for a hospital's
patients: half of them carry an effusion, which no public phantom has and no public question names, and they come
from another acquisition (exposure curve, collimator edges, noise). Their closed question is the one a hospital
would ask; every sixth patient also has an open one. So a base model that has not learned from hospitals stands
near the majority answer. The images are no substitute for real ones and prove nothing about patients.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image

from fedmed.data.phantom_image import Drawn, draw
from fedmed.data.schema import AnswerType, Example, ImageRef, Split, Task
from fedmed.errors import DataError

Domain = Literal["public", "hospital"]
CHUNK = 64
HOSPITAL_QUESTION = "Does this chest X-ray show a pleural effusion?"
REPORT_QUESTIONS = ("Write a short report.", "Describe this chest X-ray.", "What does this chest X-ray show?")
CLOSED_FORMS = (
    "Does this chest X-ray show {}?",
    "Is there {}?",
    "Is {} visible in this image?",
    "Does the patient have {}?",
)
NAMES = {
    "consolidation": "consolidation",
    "haze": "ground-glass opacity",
    "interstitial": "an interstitial pattern",
    "nodule": "a nodule",
    "cardiomegaly": "an enlarged heart",
}
NUMBERS = ("zero", "one", "two", "three")
ZONES = ("upper", "middle", "lower")
Record = tuple[str, str, AnswerType, Task, str]  # question, answer, answer type, task, question type


def phantom_examples(num_patients: int, seed: int, *, domain: Domain, split: Split) -> Iterator[Example]:
    """Examples of `num_patients` phantom patients, one image each, several records an image.

    Args:
        num_patients: how many; patients come in order, with identifiers that tell nothing.
        seed: with `domain` and `split` it fixes everything; splits never share a phantom.
        domain: `public` or `hospital`.
        split: `train`, `val` or `test`.

    Raises:
        DataError: an unknown domain or split.
    """
    if domain not in ("public", "hospital") or split not in ("train", "val", "test"):
        raise DataError(
            f"phantom domain={domain!r} split={split!r}: expected public or hospital, and train, val or test",
            "choose one of these",
        )
    rng = np.random.default_rng([seed, zlib.crc32(f"{domain}/{split}".encode())])
    for start in range(0, num_patients, CHUNK):
        drawn = draw(min(CHUNK, num_patients - start), rng, domain)
        for index, image in enumerate(drawn.images):
            records = records_of(drawn, index, rng, domain, ask_open=(start + index) % 6 == 0)
            yield from _examples(f"{split}-{start + index}", image, records, _label(drawn, index, domain), split)


def records_of(
    drawn: Drawn, index: int, rng: np.random.Generator, domain: Domain, *, ask_open: bool = True
) -> list[Record]:
    """Questions and answers about one phantom."""
    if domain == "hospital":
        sides = drawn.findings["effusion"][index] > 0
        records: list[Record] = [(HOSPITAL_QUESTION, yes_no(sides.any()), "closed", "vqa", "effusion")]
        if ask_open and sides.any():
            records.append(("On which side is the pleural effusion?", side_word(sides), "open", "vqa", "side"))
        return records
    return [*_closed(drawn, index, rng), *_open(drawn, index), _report(drawn, index, rng)]


def yes_no(truth: bool | np.bool_) -> str:
    return "yes" if truth else "no"


def side_word(sides: np.ndarray) -> str:
    """The patient's side; the patient's right is on the image's left."""
    return "both" if sides.all() else "left" if sides[1] else "right"


def _present(drawn: Drawn, index: int) -> dict[str, np.ndarray]:
    return {name: drawn.findings[name][index] > 0 for name in NAMES}


def _closed(drawn: Drawn, index: int, rng: np.random.Generator) -> list[Record]:
    present = _present(drawn, index)
    lungs = any(present[name].any() for name in ("consolidation", "haze", "interstitial"))
    truths = {NAMES[name]: bool(sides.any()) for name, sides in present.items()}
    truths |= {"an opacity": lungs, "any abnormality": any(truths.values())}
    records: list[Record] = []
    for name, truth in truths.items():
        form = CLOSED_FORMS[rng.integers(len(CLOSED_FORMS))]
        records.append((form.format(name), yes_no(truth), "closed", "vqa", "closed"))
    records.append(
        ("Are the lungs clear?", yes_no(not lungs and not present["nodule"].any()), "closed", "vqa", "closed")
    )
    return records


def _open(drawn: Drawn, index: int) -> list[Record]:
    present = _present(drawn, index)
    records: list[Record] = []
    for name in ("consolidation", "haze", "interstitial", "nodule"):
        if present[name].any():
            noun = NAMES[name].removeprefix("an ").removeprefix("a ")
            records.append((f"On which side is the {noun}?", side_word(present[name]), "open", "vqa", "side"))
    if drawn.zones[index] >= 0:
        zone = ZONES[drawn.zones[index]]
        records.append(("In which zone is the consolidation?", zone, "open", "vqa", "zone"))
    records.append(("How many nodules are there?", NUMBERS[drawn.nodules[index]], "open", "vqa", "count"))
    return records


def _report(drawn: Drawn, index: int, rng: np.random.Generator) -> Record:
    """Two sentences: the lungs, then the heart."""
    present = _present(drawn, index)
    parts = []
    for name in ("consolidation", "haze", "interstitial"):
        if present[name].any():
            side = side_word(present[name]).replace("both", "bilateral")
            parts.append(f"{side} {NAMES[name].removeprefix('an ')}")
    if count := int(drawn.nodules[index]):
        parts.append(f"{NUMBERS[count]} {side_word(present['nodule'])} nodule{'s' if count > 1 else ''}")
    lungs = f"There is {' and '.join(parts)}." if parts else "The lungs are clear."
    heart = "The heart is enlarged." if present["cardiomegaly"].any() else "The heart is normal in size."
    question = REPORT_QUESTIONS[rng.integers(len(REPORT_QUESTIONS))]
    return question, f"{lungs} {heart}", "open", "report", "report"


def _label(drawn: Drawn, index: int, domain: Domain) -> str:
    if domain == "hospital":
        return "effusion" if drawn.findings["effusion"][index].any() else "normal"
    return "abnormal" if any(sides.any() for sides in _present(drawn, index).values()) else "normal"


def _examples(patient: str, image: np.ndarray, records: list[Record], label: str, split: Split) -> Iterator[Example]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    reference = ImageRef(data=buffer.getvalue())
    for question, answer, answer_type, task, question_type in records:
        yield Example(
            patient=patient,
            images=(reference,),
            question=question,
            answer=answer,
            answer_type=answer_type,
            task=task,
            source="phantom",
            split=split,
            attributes={"label": label, "question_type": question_type},
        )
