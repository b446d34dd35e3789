"""Small cohorts and plans for the tests of training. Import as `helpers_training` (see tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedmed.data.case import Case, CaseImage, Genomic, Laboratory, PriorReport, lay_out, ordered_images
from fedmed.data.images import encode_png
from fedmed.data.manifest import Manifest, write_manifest
from fedmed.data.schema import Example, Exchange, ImageRef
from fedmed.messages import LoraSpec, OptimizerSpec, PrivacySpec
from fedmed.models.adapter import State
from fedmed.training.steps import RoundPlan

EVERYWHERE = LoraSpec(4, 8.0, ("language_model", "projector", "vision_tower"), ("all-linear",))
BOTH = ("lora_A", "lora_B")


def picture(seed: int, size: tuple[int, int] = (28, 28)) -> ImageRef:
    pixels = np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)
    return ImageRef(data=encode_png(pixels))


def record(
    patient: int, seed: int, images: int, answer: str = "yes", sizes: Sequence[tuple[int, int]] = ((28, 28),)
) -> Example:
    question = "Is there an opacity?" if seed % 2 else "How many?"
    pictures = tuple(picture(10 * seed + index, sizes[(seed + index) % len(sizes)]) for index in range(images))
    return Example(f"p{patient:02d}", pictures, question, answer, "closed", "vqa", "test")


def mixed_cohort(folder: Path, sizes: Sequence[tuple[int, int]] = ((28, 28),)) -> Manifest:
    """Patients with: one image; two images; none; three records of each kind; five records; two records without image."""
    kinds: list[Sequence[int]] = [[1], [2], [0], [1, 2, 0], [1, 1, 2, 1, 1], [0, 0]]
    answers = ["yes", "no", "two", "The heart is normal.", "left"]
    examples, seed = [], 0
    for patient, images in enumerate(kinds):
        for count in images:
            examples.append(record(patient, seed, count, answers[seed % len(answers)], sizes))
            seed += 1
    return write_manifest(folder, examples)


def plan(
    mode: str = "dp",
    *,
    noise: float = 0.0,
    rate: float = 1.0,
    bound: float = 1.0,
    steps: int = 1,
    records: int = 8,
    physical_batch: int = 64,
    lot: float = 1.0,
    lora: LoraSpec = EVERYWHERE,
    trainable: tuple[str, ...] = BOTH,
    optimizer: OptimizerSpec | None = None,
    run: str = "r",
    precision: str = "float32",
) -> RoundPlan:
    """A round that, by default, is one SGD step of size one without noise: new = old - clipped sum."""
    optimizer = optimizer or OptimizerSpec("sgd", 1.0, 0.0, 0.0, True)
    privacy = PrivacySpec(mode, noise, rate, bound, records, steps, 1e-5)
    return RoundPlan(lora, privacy, optimizer, trainable, precision, physical_batch, lot, run)


def random_state(like: State, seed: int = 5) -> State:
    """An adapter whose B is not zero, so that every tensor has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in like.items()}


def flat(state: State) -> torch.Tensor:
    return torch.cat([state[key].flatten().double() for key in sorted(state)])


def cases_among_ordinary_records(folder: Path) -> Manifest:
    """Patients with: a case of three images at marks and tables; a case without images; a conversation about an image;
    a case, an ordinary record and a text alone; an ordinary record."""
    prior = CaseImage("b", "prior", 30, "CT")
    case = Case(
        "Is there an opacity?",
        images=(prior, CaseImage("a", modality="CT"), CaseImage("c", "prior", 90)),
        reports=(PriorReport("The heart is normal.", 30),),
        laboratory=(Laboratory("CRP", "12", "mg/L", "0-5"),),
        genomics=(Genomic("EGFR", "L858R", "pathogenic"),),
    )
    said = (Exchange("<image> Is there an opacity?", "yes"), Exchange("One?", "no"))
    examples = [
        case_record(0, case, "yes"),
        case_record(1, replace(case, images=()), "The heart is normal."),
        replace(record(2, 3, 1, "three"), question="How many?", history=said),
        replace(record(2, 3, 1, "yes"), question="Left?", history=(*said, Exchange("How many?", "three"))),
        case_record(3, replace(case, images=(prior,), laboratory=()), "no"),
        record(3, 5, 2, "two"),
        record(3, 6, 0, "left"),
        record(4, 7, 1),
    ]
    return write_manifest(folder, examples)


def case_record(patient: int, case: Case, answer: str) -> Example:
    pictures = tuple(picture(100 * patient + ord(image.name)) for image in ordered_images(case))
    return Example(f"p{patient:02d}", pictures, lay_out(case), answer, "open", "vqa", "cases")
