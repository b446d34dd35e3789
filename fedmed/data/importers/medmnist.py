"""MedMNIST's 2D sets (Yang et al., Scientific Data 2023), as closed questions about one image.

    {train,val,test}_images  uint8 [N, H, W] or [N, H, W, 3]   ->  one PNG, one patient per image
    {train,val,test}_labels  [N, 1]                            ->  the answer, and the attribute `label`

    >>> PNEUMONIA.read(Path("data/pneumoniamnist.npz"), split="test").rows_read
    624

Another set is one more `MedMnist(...)` with its question and labels, registered in `fedmed.data.importers`. The
files do not say which images show the same patient: each image counts as one.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from fedmed.data.images import encode_png
from fedmed.data.importers.base import Importer, Tally, require_split
from fedmed.data.schema import Example, ImageRef, Split
from fedmed.errors import DataError


@dataclass(frozen=True)
class Label:
    """What a numeric label means: the `answer` to the set's question and the `name` kept as attribute."""

    answer: str
    name: str


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

    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The official split; there is no other, since every image is its own patient.

        Raises:
            DataError: not an npz file of plain arrays, or arrays of other keys, shapes, types or labels.
        """
        kind = require_split(self.name, split, split_rule, rules=("official",))
        return self._examples(*self._arrays(path, kind), tally, kind)

    def _examples(self, images: np.ndarray, labels: np.ndarray, tally: Tally, split: Split) -> Iterator[Example]:
        for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            tally.rows_read += 1
            yield self._example(index, pixels, int(label), split)

    def _example(self, index: int, pixels: np.ndarray, label: int, split: Split) -> Example:
        meaning = self.labels[label]
        return Example(
            patient=f"{split}-{index:06d}",
            images=(ImageRef(data=encode_png(pixels)),),
            question=self.question,
            answer=meaning.answer,
            answer_type="closed",
            task="vqa",
            source=self.name,
            split=split,
            attributes={"label": meaning.name},
        )

    def _arrays(self, path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels [N] of a split, checked."""
        images, labels = (load_array(path, f"{split}_{kind}") for kind in ("images", "labels"))
        channels = images.shape[3:] in ((), (3,))
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or not channels or not images.size:
            raise self._wrong(path, f"{split}_images", images, "uint8 [N, H, W] or [N, H, W, 3]")
        if labels.shape != (len(images), 1) or not np.issubdtype(labels.dtype, np.integer):
            raise self._wrong(path, f"{split}_labels", labels, f"whole numbers [{len(images)}, 1]")
        if unknown := sorted(set(labels[:, 0].tolist()) - set(self.labels)):
            raise DataError(f"{path.name}: {split}_labels holds {unknown}, expected {sorted(self.labels)}")
        return images, labels[:, 0]

    def _wrong(self, path: Path, key: str, array: np.ndarray, expected: str) -> DataError:
        return DataError(
            f"{path.name}: {key} is {array.dtype} {list(array.shape)}, expected {expected}",
            f"is it the file of {self.name}? get it again with `fedmed data fetch {self.name}`",
        )


def array_names(path: Path) -> list[str]:
    """The sorted names of an npz file's arrays. Raises DataError as `load_array` does."""
    with _open_npz(path) as arrays:
        return sorted(arrays.files)


def load_array(path: Path, key: str) -> np.ndarray:
    """One array of an npz file.

    Raises:
        DataError: no such file or array, not an npz file, damaged, or holding pickled objects, which are refused.
    """
    with _open_npz(path) as arrays:
        if key not in arrays.files:
            raise DataError(f"{path.name} lacks the array {key}, it has {', '.join(sorted(arrays.files)) or 'none'}")
        array: np.ndarray = arrays[key]
        return array


@contextmanager
def _open_npz(path: Path) -> Iterator[NpzFile]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if not isinstance(arrays, NpzFile):  # a lone array (.npy) may be a memory map, which `with` also takes
                raise ValueError("not an npz file")
            yield arrays
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        raise DataError(
            f"{path.name} is not a readable npz file of plain arrays", "get it again: it may be cut off"
        ) from None


PNEUMONIA = MedMnist(
    name="pneumoniamnist",
    description="5,856 paediatric chest X-rays, 28x28: is there pneumonia? (CC BY 4.0)",
    filename="pneumoniamnist.npz",
    question="Does this chest X-ray show pneumonia?",
    labels={0: Label("no", "normal"), 1: Label("yes", "pneumonia")},
)
