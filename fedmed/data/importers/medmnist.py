"""MedMNIST's 2D sets (Yang et al., Scientific Data 2023), as closed questions about one image.

    {train,val,test}_images  uint8 [N, H, W] or [N, H, W, 3]   ->  one PNG, one patient per image
    {train,val,test}_labels  [N, 1]                            ->  the answer, and the attribute `label`
    ChestMNIST's labels      [N, 14] of 0 and 1                ->  14 yes/no questions, the attributes `finding`, `label`

    >>> PNEUMONIA.read(Path("data/pneumoniamnist.npz"), split="test").rows_read
    624

All twelve sets are in one table below, with label names as in the authors' `info.py` (github.com/MedMNIST/MedMNIST). Images
are read one by one: the larger files (`pathmnist_64.npz`, `_128`, `_224`) hold up to 14 GB. Such a file is read by the same
entry, given as `data.path` or as SOURCE; a size in its name must be the size of its images.

The files do not say which images show the same patient: each image counts as one. ChestMNIST has 112,120 images of 30,805
patients and the organ sets several slices of 201 scans, so that privacy per patient is privacy per image there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmed.data.images import MAX_PIXELS, encode_png
from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.importers.npz import Head, array_head, array_rows
from fedmed.data.schema import Example, ImageRef, Split
from fedmed.errors import DataError

_SIZE = re.compile(r"_(28|64|128|224)$")
# As ChestX-ray14 orders them; those that are counted take an article in a question.
_FINDINGS = (
    *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax"),
    *("consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
)
_SPOKEN = {"mass": "a mass", "nodule": "a nodule", "pneumothorax": "a pneumothorax", "hernia": "a hernia"}
_SPOKEN |= {"effusion": "an effusion", "infiltration": "an infiltration", "pleural": "pleural thickening"}


@dataclass(frozen=True)
class Label:
    """What a numeric label means: the `answer` to the set's question and the `name` kept as attribute."""

    answer: str
    name: str


@dataclass(frozen=True)
class Asked:
    """One question about an image, with its answer and what is kept of the label."""

    question: str
    answer: str
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class MedMnist(Importer):
    """Importer of one MedMNIST file.

    Attributes:
        question: asked about every image.
        labels: numeric label -> its meaning; must cover the file's labels.
    """

    name: str
    description: str
    filename: str
    question: str
    labels: Mapping[int, Label]

    @property
    def width(self) -> int:
        """Labels of an image."""
        return 1

    @property
    def known(self) -> list[int]:
        """The values that a label may have."""
        return sorted(self.labels)

    def asked(self, label: np.ndarray) -> Iterator[Asked]:
        """What is asked of an image with these labels."""
        meaning = self.labels[int(label[0])]
        yield Asked(self.question, meaning.answer, {"label": meaning.name})

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The official split; there is no other, since every image is its own patient.

        Raises:
            DataError: not an npz file of plain arrays, or arrays of other keys, shapes, types or labels.
        """
        kind = require_split(self.name, split, split_rule, rules=("official",))
        self._check(path, kind)
        return self._examples(path, tally, kind)

    def _examples(self, path: Path, tally: Tally, split: Split) -> Iterator[Example]:
        rows = zip(array_rows(path, f"{split}_images"), array_rows(path, f"{split}_labels"), strict=True)
        for index, (pixels, label) in enumerate(rows):
            tally.rows_read += 1
            images = (ImageRef(data=encode_png(pixels)),)
            for asked in self.asked(label):
                yield Example(
                    patient=f"{split}-{index:06d}",
                    images=images,
                    question=asked.question,
                    answer=asked.answer,
                    answer_type="closed",
                    task="vqa",
                    source=self.name,
                    split=split,
                    attributes=asked.attributes,
                )

    def _check(self, path: Path, split: str) -> None:
        """That the arrays of a split are what they should be; looks at all labels, and at no image."""
        images, labels = (array_head(path, f"{split}_{kind}") for kind in ("images", "labels"))
        self._check_images(path, f"{split}_images", images)
        count = images.shape[0]
        if labels.shape != (count, self.width) or not np.issubdtype(labels.dtype, np.integer):
            raise self._wrong(path, f"{split}_labels", labels, f"whole numbers [{count}, {self.width}]")
        values = {int(value) for row in array_rows(path, f"{split}_labels") for value in row}
        if unknown := sorted(values - set(self.known)):
            raise DataError(f"{path.name}: {split}_labels holds {unknown}, expected {self.known}")

    def _check_images(self, path: Path, key: str, head: Head) -> None:
        fits = len(head.shape) in (3, 4) and head.shape[3:] in ((), (3,)) and 0 not in head.shape
        if head.dtype != np.uint8 or not fits or head.shape[1] * head.shape[2] > MAX_PIXELS:
            raise self._wrong(path, key, head, "uint8 [N, H, W] or [N, H, W, 3]")
        side = _SIZE.search(path.stem)
        if side and head.shape[1:3] != (int(side[1]),) * 2:
            raise self._wrong(path, key, head, f"images of {side[1]} x {side[1]}, as the file's name says")

    def _wrong(self, path: Path, key: str, head: Head, expected: str) -> DataError:
        return DataError(
            f"{path.name}: {key} is {head.dtype} {list(head.shape)}, expected {expected}",
            f"is it the file of {self.name}? get it again with `fedmed data fetch {self.name}`",
        )


@dataclass(frozen=True)
class MedMnistFindings(MedMnist):
    """A set of many labels an image: each is a yes/no question of its own.

    Attributes:
        question: with {} for the finding.
        labels: column -> the finding; `answer` is how the question names it.
    """

    @property
    def width(self) -> int:
        return len(self.labels)

    @property
    def known(self) -> list[int]:
        return [0, 1]

    def asked(self, label: np.ndarray) -> Iterator[Asked]:
        for column, finding in self.labels.items():
            answer = "yes" if label[column] else "no"
            yield Asked(self.question.format(finding.answer), answer, {"finding": finding.name, "label": answer})


def _named(*names: str) -> dict[int, Label]:
    """Labels 0, 1, ... whose answer is the name."""
    return {number: Label(name, name) for number, name in enumerate(names)}


def _organs() -> dict[int, Label]:
    one_sided = {
        1: "femur-left",
        2: "femur-right",
        4: "kidney-left",
        5: "kidney-right",
        7: "lung-left",
        8: "lung-right",
    }
    plain = {0: "bladder", 3: "heart", 6: "liver", 9: "pancreas", 10: "spleen"}
    sided = {number: Label(" ".join(reversed(name.split("-"))), name) for number, name in one_sided.items()}
    return dict(sorted((sided | {number: Label(name, name) for number, name in plain.items()}).items()))


def _set(name: str, description: str, question: str, labels: Mapping[int, Label]) -> MedMnist:
    kind = MedMnistFindings if "{}" in question else MedMnist
    terms = "CC BY-NC 4.0" if name == "dermamnist" else "CC BY 4.0"
    return kind(name, f"{description} ({terms})", f"{name}.npz", question, labels)


def _organ_set(letter: str, plane: str, count: str) -> MedMnist:
    question = f"Which organ is in the middle of this {plane} CT slice?"
    return _set(f"organ{letter}mnist", f"{count} {plane} CT slices of 11 organs", question, _organs())


PNEUMONIA = _set(
    "pneumoniamnist",
    "5,856 paediatric chest X-rays, 28x28: is there pneumonia?",
    "Does this chest X-ray show pneumonia?",
    {0: Label("no", "normal"), 1: Label("yes", "pneumonia")},
)
SETS: tuple[MedMnist, ...] = (
    PNEUMONIA,
    _set(
        "pathmnist",
        "107,180 patches of colon histology: which of 9 tissues?",
        "Which tissue does this patch of colon histology show?",
        _named(
            *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
            *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
        ),
    ),
    _set(
        "chestmnist",
        "112,120 chest X-rays: is each of 14 findings there?",
        "Does this chest X-ray show {}?",
        {number: Label(_SPOKEN.get(name, name), name) for number, name in enumerate(_FINDINGS)},
    ),
    _set(
        "dermamnist",
        "10,015 dermatoscopic images: which of 7 lesions?",
        "Which skin lesion does this dermatoscopic image show?",
        _named(
            *(
                "actinic keratoses and intraepithelial carcinoma",
                "basal cell carcinoma",
                "benign keratosis-like lesions",
            ),
            *("dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions"),
        ),
    ),
    _set(
        "octmnist",
        "109,309 retinal OCT images: which of 3 diseases, or none?",
        "Which diagnosis does this retinal OCT image show?",
        _named("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    ),
    _set(
        "retinamnist",
        "1,600 fundus photographs: how severe is the retinopathy?",
        "Which grade of diabetic retinopathy, from 0 to 4, does this fundus photograph show?",
        _named("0", "1", "2", "3", "4"),
    ),
    _set(
        "breastmnist",
        "780 breast ultrasound images: is it malignant?",
        "Does this breast ultrasound image show a malignant lesion?",
        {0: Label("yes", "malignant"), 1: Label("no", "normal, benign")},
    ),
    _set(
        "bloodmnist",
        "17,092 blood cells: which of 8 kinds?",
        "Which blood cell does this image show?",
        _named(
            *("basophil", "eosinophil", "erythroblast", "immature granulocyte"),
            *("lymphocyte", "monocyte", "neutrophil", "platelet"),
        ),
    ),
    _set(
        "tissuemnist",
        "236,386 cells of the kidney cortex: which of 8 kinds?",
        "Which kind of kidney cortex cell does this image show?",
        _named(
            *("collecting duct, connecting tubule", "distal convoluted tubule", "glomerular endothelial cells"),
            *("interstitial endothelial cells", "leukocytes", "podocytes", "proximal tubule segments"),
            "thick ascending limb",
        ),
    ),
    _organ_set("a", "axial", "58,830"),
    _organ_set("c", "coronal", "23,583"),
    _organ_set("s", "sagittal", "25,211"),
)
