"""What DATASET on the command line means: examples to be asked, their images, and the train split where it is known.

    >>> test = load_test_set("vqa_rad", split="test", split_rule="image")
    >>> test.name, len(test.examples), test.train is not None
    ('vqa_rad', 688, True)

| DATASET           | examples                                     | train split: for overlap, and examples in the prompt |
| ----------------- | -------------------------------------------- | ---------------------------------------------------- |
| phantom, ...      | PHANTOMS drawn patients of a hospital        | as many drawn ones of the split train                |
| NAME              | that importer's, from $FEDMED_DATA_DIR       | the importer's own, by the same split rule           |
| NAME:PATH         | that importer's, from PATH                   | the same                                             |
| a manifest folder | its examples of the split                    | its examples of the split train; unknown if none     |

Of the split train itself the train split is known, and every image is in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from PIL import Image

from fedmed.data.images import open_image, read_image
from fedmed.data.importers import IMPORTERS, Importer
from fedmed.data.manifest import load_manifest
from fedmed.data.manifest_line import MANIFEST_NAME
from fedmed.data.schema import SPLITS, Example, ImageRef, Split
from fedmed.data.sources import DATA_DIR_VARIABLE, GENERATED, data_dir
from fedmed.errors import DataError

PHANTOMS = 200


@dataclass(frozen=True)
class TestSet:
    """Questions with their truths.

    Attributes:
        folder: what the images' paths are relative to; None where references hold bytes.
        train: what a model of this data set may have seen; None where it is not known.
        first: so many examples were taken, the first ones; 0: all.
        notes: what a reader of the scores must know: rows left out, a limit.
    """

    __test__ = False  # no class of tests, whatever its name says to pytest

    name: str
    split: str
    split_rule: str
    examples: tuple[Example, ...] = field(repr=False)
    folder: Path | None = field(repr=False)
    train: tuple[Example, ...] | None = field(repr=False)
    notes: tuple[str, ...] = ()
    first: int = 0

    @property
    def patients(self) -> list[str]:
        """Of each example, whose it is."""
        return [example.patient for example in self.examples]

    def images(self, example: Example) -> list[Image.Image]:
        """The pictures of one of the examples, or of the train split, in RGB."""
        return [open_image(ref, self.folder) for ref in example.images]

    def image_bytes(self, ref: ImageRef) -> bytes:
        """An image as it is stored."""
        return read_image(ref, self.folder)

    def sha256(self) -> str:
        """Over questions, truths and images in order: two reports of one hash are of the same questions."""
        digest = hashlib.sha256()
        images: dict[ImageRef, bytes] = {}
        for example in self.examples:
            texts = [*example.questions, *(said.answer for said in example.history), example.answer, *example.choices]
            digest.update("\0".join([*texts, example.answer_type, example.task]).encode())
            for ref in example.images:
                if ref not in images:
                    images[ref] = hashlib.sha256(self.image_bytes(ref)).digest()
                digest.update(images[ref])
        return digest.hexdigest()


def load_test_set(
    dataset: str, *, split: str = "test", split_rule: str = "official", limit: int = 0, seed: int = 0
) -> TestSet:
    """The data set that `dataset` names.

    Args:
        split: train, val or test. split_rule: as importers offer it. limit: so many examples at most, the first ones; 0: all.
        seed: of phantoms.

    Raises:
        DataError: no such data set, split or rule; nothing in it; or a file that cannot be read.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    name, _, given = dataset.partition(":")
    if dataset in GENERATED:
        found = _generated(dataset, cast(Split, split), seed)
    elif name in IMPORTERS:
        found = _imported(IMPORTERS[name], _place(IMPORTERS[name], given), split, split_rule)
    elif (Path(dataset) / MANIFEST_NAME).is_file():
        found = _manifest(Path(dataset), split)
    else:
        known = ", ".join(sorted([*IMPORTERS, *GENERATED]))
        raise DataError(f"no data set {dataset!r}: expected {known}, or a folder that holds {MANIFEST_NAME}")
    if not found.examples:
        raise DataError(f"{found.name} has no example of the split {split}", "choose another with --split")
    return _limited(found, limit)


def _generated(name: str, split: Split, seed: int) -> TestSet:
    def draw(kind: Split) -> tuple[Example, ...]:
        return tuple(GENERATED[name](PHANTOMS, seed, kind))

    note = f"{PHANTOMS} drawn patients of seed {seed}: no score of theirs says anything about real patients"
    return TestSet(name, split, "by patient", draw(split), None, draw("train"), (note,))


def _imported(importer: Importer, path: Path, split: str, split_rule: str) -> TestSet:
    imported = importer.read(path, split=split, split_rule=split_rule)
    notes = []
    if imported.quarantined:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(imported.quarantined.items()))
        notes.append(f"{sum(imported.quarantined.values())} of {imported.rows_read} rows left out: {reasons}")
    train, why = (imported.examples, ()) if split == "train" else _train(importer, path, split_rule)
    return TestSet(importer.name, split, split_rule, imported.examples, None, train, (*notes, *why))


def _train(importer: Importer, path: Path, split_rule: str) -> tuple[tuple[Example, ...] | None, tuple[str, ...]]:
    """The importer's train split; None with the reason where it has none."""
    try:
        examples = importer.read(path, split="train", split_rule=split_rule).examples
    except DataError as error:
        return None, (f"the train split is not known: {error.message}",)
    return (examples, ()) if examples else (None, ("the train split is not known: it is empty",))


def _place(importer: Importer, given: str) -> Path:
    path = Path(given) if given else data_dir() / importer.filename
    if not path.exists():
        raise DataError(
            f"{importer.name} was not found: {path} does not exist",
            f"give its place as {importer.name}:PATH, or set {DATA_DIR_VARIABLE} to the folder that holds {importer.filename}",
        )
    return path


def _manifest(folder: Path, split: str) -> TestSet:
    manifest = load_manifest(folder)
    parts = {kind: tuple(example for example in manifest.examples if example.split == kind) for kind in SPLITS}
    if not parts[split]:
        found = ", ".join(f"{len(examples)} of {kind}" for kind, examples in parts.items() if examples)
        raise DataError(f"{folder} has no example of the split {split}: it has {found}", "choose another with --split")
    notes = (f"{manifest.quarantined} examples left out: an image does not decode",) if manifest.quarantined else ()
    return TestSet(folder.resolve().name, split, "of the manifest", parts[split], folder, parts["train"] or None, notes)


def _limited(found: TestSet, limit: int) -> TestSet:
    if not 0 < limit < len(found.examples):
        return found
    note = f"scores are of the first {limit} of {len(found.examples)} examples"
    return replace(found, examples=found.examples[:limit], notes=(*found.notes, note), first=limit)


def by_image(examples: Sequence[Example]) -> list[ImageRef]:
    """The different images of the examples, in order."""
    return list(dict.fromkeys(ref for example in examples for ref in example.images))
