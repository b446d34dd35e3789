"""Whether images of a test set were in its train split, by a hash of their pixels.

    >>> found = overlap(test)
    >>> found.known, found.in_train, found.images
    (True, 201, 203)

The hash is of the decoded picture, so that the same picture stored anew is still the same; one that was scaled, cropped or
compressed anew is not found. Where the train split is unknown the answer is unknown: None, never 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from aggregator.evaluating.dataset import TestSet, by_image
from fedmed.data.images import decode
from fedmed.data.schema import Example, ImageRef


@dataclass(frozen=True)
class Overlap:
    """What the two splits share.

    Attributes:
        images: different pictures of the test set. in_train: how many of them the train split has; None: unknown.
        items: examples with such a picture; None: unknown.
        seen: of each example "yes" or "no"; "" where that is unknown or it has no image.
    """

    images: int
    in_train: int | None
    items: int | None
    seen: tuple[str, ...] = field(repr=False)

    @property
    def known(self) -> bool:
        return self.in_train is not None

    def sentence(self) -> str:
        """For a person."""
        if self.in_train is None:
            return "Whether test images were in the training data is unknown: the data set names no train split."
        if not self.images:
            return "The test set has no image."
        if not self.in_train:
            return f"None of the {self.images} test images is in the train split (by a hash of their pixels)."
        return (
            f"{self.in_train} of the {self.images} test images are in the train split too (by a hash of their pixels); "
            f"{self.items} of {len(self.seen)} questions are about such an image, and a model that was trained on it "
            "may answer from memory."
        )


def overlap(test: TestSet) -> Overlap:
    """What the test set shares with its own train split."""
    hashes = _PixelHashes(test)
    tested = {hashes.of(ref) for ref in by_image(test.examples)}
    if test.train is None:
        return Overlap(len(tested), None, None, ("",) * len(test.examples))
    trained = {hashes.of(ref) for ref in by_image(test.train)}
    seen = tuple(_seen(example, hashes, trained) for example in test.examples)
    return Overlap(len(tested), len(tested & trained), seen.count("yes"), seen)


def image_hashes(test: TestSet, examples: Sequence[Example]) -> list[frozenset[bytes]]:
    """Of each example the hashes of its pictures."""
    hashes = _PixelHashes(test)
    return [frozenset(hashes.of(ref) for ref in example.images) for example in examples]


def _seen(example: Example, hashes: _PixelHashes, trained: set[bytes]) -> str:
    if not example.images:
        return ""
    return "yes" if any(hashes.of(ref) in trained for ref in example.images) else "no"


class _PixelHashes:
    """Each stored image is decoded once."""

    def __init__(self, test: TestSet) -> None:
        self._test = test
        self._known: dict[bytes, bytes] = {}
        self._of_ref: dict[ImageRef, bytes] = {}

    def of(self, ref: ImageRef) -> bytes:
        if ref not in self._of_ref:
            data = self._test.image_bytes(ref)
            stored = hashlib.sha256(data).digest()
            if stored not in self._known:
                picture = decode(data)
                self._known[stored] = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()
            self._of_ref[ref] = self._known[stored]
        return self._of_ref[ref]
