"""Public phantoms as training arrays: images, dense targets, questions and reports.

    make_phantom_set(16000, seed=0, split="train") -> PhantomSet -> stages of fedmed.models.pretrain

Legend: N phantoms, 64 x 64 pixels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from fedmed.data.phantom import NAMES, Record, records_of
from fedmed.data.phantom_image import Drawn, draw
from fedmed.models.tiny import IMAGE_SIZE

CHUNK = 64
# So that the tokenizer knows the words of hospitals' questions; no phantom's truth is behind them.
MEDICAL_WORDS = (
    "pneumonia pneumothorax pleural effusion edema atelectasis cardiomegaly infiltrate emphysema fibrosis mass lesion "
    "fracture hernia normal abnormal acute chronic mild moderate severe bilateral patient image scan X-ray CT MRI brain "
    "abdomen chest lung lungs heart liver spleen kidney bowel pelvis spine hemorrhage infarct tumor contrast axial "
    "plane modality organ system evidence present seen shown located where what which how many is are there the this "
    "left right upper lower middle lobe zone both none yes no diagnosis disease finding"
)


@dataclass(frozen=True)
class PhantomSet:
    """N public phantoms.

    Attributes:
        pixels: uint8 [N, E, E], as the image processor resizes them.
        attributes: float32 [N, A], 0 or 1: each finding on each side, zones, nodule counts.
        strengths: float32 [N, 2 * findings], how dense each finding is on each side.
        opacity, lungs: float32 [N, 7, 7], per vision patch.
        records: for each phantom its questions, answers and report.
    """

    pixels: torch.Tensor
    attributes: torch.Tensor
    strengths: torch.Tensor
    opacity: torch.Tensor
    lungs: torch.Tensor
    records: list[list[Record]]


def make_phantom_set(count: int, seed: int, split: str) -> PhantomSet:
    """Draws `count` public phantoms; splits never share one."""
    rng = np.random.default_rng([seed, zlib.crc32(f"pretrain/{split}".encode())])
    pixels, attributes, strengths, opacity, lungs = [], [], [], [], []
    records: list[list[Record]] = []
    for start in range(0, count, CHUNK):
        drawn = draw(min(CHUNK, count - start), rng, "public")
        pixels.append(np.stack([_resize(image) for image in drawn.images]))
        attributes.append(_attributes(drawn))
        strengths.append(np.concatenate([drawn.findings[name] for name in NAMES], 1))
        opacity.append(drawn.opacity)
        lungs.append(drawn.lungs)
        records.extend(records_of(drawn, index, rng, "public") for index in range(len(drawn.images)))
    return PhantomSet(
        pixels=_join(pixels),
        attributes=_join(attributes),
        strengths=_join(strengths),
        opacity=_join(opacity),
        lungs=_join(lungs),
        records=records,
    )


def tokenizer_texts(phantoms: PhantomSet) -> list[str]:
    """What the tokenizer is trained on: public questions, answers, reports and general medical words."""
    sample = [text for records in phantoms.records[:500] for record in records for text in record[:2]]
    return (
        sample
        + [f"{word} {word.capitalize()}" for word in MEDICAL_WORDS.split() for _ in range(20)]
        + [MEDICAL_WORDS] * 200
    )


def _resize(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def _attributes(drawn: Drawn) -> np.ndarray:
    sides = [drawn.findings[name] > 0 for name in NAMES]
    zones = drawn.zones[:, None] == np.arange(3)
    counts = drawn.nodules[:, None] >= np.arange(1, 4)
    return np.concatenate([*sides, zones, counts], 1).astype(np.float32)


def _join(parts: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts))
