"""The importers under fuzz, by reader; see `tests.fuzz.targets`.

One file of a whole source is damaged, the source read, and the file put back. What comes out must be examples that a manifest
takes, each row kept or counted under a reason, or a DataError, and the memory of a small file must stay small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fedmed.data.importers import IMPORTERS
from fedmed.data.importers.medmnist import MedMnist
from fedmed.data.schema import SPLITS
from tests.fuzz.importer_damage import damage_file
from tests.fuzz.importer_sources import LAYOUTS, Layout
from tests.fuzz.target import Target
from tests.helpers_importers import require_manifest_takes

_IMAGES = (".png", ".jpg")
_IMAGE_SHARE = 0.05  # they have their own checks, and there are many of them


@dataclass(frozen=True)
class Damaged:
    """One input: the file, what stands in it, and what is then read."""

    source: int
    file: str
    data: bytes = field(repr=False)
    split: str
    rule: str


@dataclass(frozen=True)
class Source:
    """A whole source on disk. `files`: those of rows and those that are images, by their path in `folder`."""

    entry: str
    folder: Path
    path: Path
    files: tuple[tuple[str, ...], tuple[str, ...]]

    @classmethod
    def of(cls, layout: Layout, folder: Path) -> Source:
        folder.mkdir()
        path = layout.make(folder)
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        images = tuple(name for name in names if name.endswith(_IMAGES))
        return cls(layout.entry, folder, path, (tuple(name for name in names if name not in images), images))

    @property
    def rules(self) -> tuple[str, ...]:
        only_official = isinstance(IMPORTERS[self.entry], MedMnist) or self.entry == "llava_med_eval"
        return ("official",) if only_official else ("official", "image")


def importer_target(reader: str) -> Callable[[Path], Target]:
    """The importers of that reader, in their table."""

    def target(folder: Path) -> Target:
        sources = [Source.of(layout, folder / f"{place}") for place, layout in enumerate(LAYOUTS[reader])]
        return Target(reader, lambda rng: _make(rng, sources), lambda made: _parse(made, sources[made.source]))

    return target


def _make(rng: Random, sources: list[Source]) -> Damaged:
    place = rng.randrange(len(sources))
    source = sources[place]
    rows, images = source.files
    name = rng.choice(images) if images and rng.random() < _IMAGE_SHARE else rng.choice(rows)
    data = damage_file(rng, name, (source.folder / name).read_bytes())
    return Damaged(place, name, data, rng.choice(SPLITS), rng.choice(source.rules))


def _parse(made: Damaged, source: Source) -> None:
    file = source.folder / made.file
    whole = file.read_bytes()
    file.write_bytes(made.data)
    try:
        _read(source, made.split, made.rule)
    finally:
        file.write_bytes(whole)


def _read(source: Source, split: str, rule: str) -> None:
    entry = IMPORTERS[source.entry]
    imported = entry.read(source.path, split=split, split_rule=rule)
    rows = sum(not example.history for example in imported.examples)
    if isinstance(entry, MedMnist):
        rows //= entry.width
    assert imported.rows_read == rows + sum(imported.quarantined.values()), "a row is neither kept nor quarantined"
    for example in imported.examples:
        assert (example.source, example.split) == (entry.name, split)
        require_manifest_takes(example)
