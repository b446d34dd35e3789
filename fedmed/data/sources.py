"""What the `data` section of an experiment means: a public data set, split, ready to be shared among sites.

    >>> source = load_source(experiment.data, experiment.seed)
    >>> len(source.train), len(source.test), source.notes[0]
    (4708, 624, 'pneumoniamnist: 4708 train, 524 val and 624 test examples, official split')

Where a real source is looked for, first to last:

| place                          | when                                             |
| ------------------------------ | ------------------------------------------------ |
| data.path                      | where given; it must exist: a wrong path is told |
| $FEDMED_DATA_DIR/<file>        | where the variable is set                        |
| data/<file>                    | else: where `fedmed data fetch` puts it          |
| data.fallback                  | where given: another source in its place         |
| DataError                      | else                                             |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from fedmed.config import Data
from fedmed.data.fetch import PUBLIC_SETS
from fedmed.data.importers import IMPORTERS, Imported, Importer
from fedmed.data.phantom import phantom_examples
from fedmed.data.phantom_course import course_examples
from fedmed.data.phantom_tools import phantom_tool_examples
from fedmed.data.schema import SPLITS, Example, Split
from fedmed.errors import DataError

DATA_DIR_VARIABLE = "FEDMED_DATA_DIR"
# Drawn from the experiment's seed: so many patients of a split.
GENERATED: dict[str, Callable[[int, int, Split], Iterator[Example]]] = {
    "phantom": lambda count, seed, split: phantom_examples(count, seed, domain="hospital", split=split),
    "phantom_course": lambda count, seed, split: course_examples(count, seed, split=split),
    "phantom_tools": lambda count, seed, split: phantom_tool_examples(count, seed, split=split),
}


@dataclass(frozen=True)
class Source:
    """A data set as an experiment uses it.

    Attributes:
        name: of the importer, or of GENERATED: what was used, which may be the fallback.
        train: to be shared among the sites.
        val, test: public; val for tuning, test for the scores that are reported.
        notes: what a reader of the results must know: split rule, leaks, quarantined rows, fallback.
    """

    name: str
    train: tuple[Example, ...] = field(repr=False)
    val: tuple[Example, ...] = field(repr=False)
    test: tuple[Example, ...] = field(repr=False)
    notes: tuple[str, ...]


def data_dir() -> Path:
    """Where public data sets lie: $FEDMED_DATA_DIR, or `data` in the working directory."""
    return Path(os.environ.get(DATA_DIR_VARIABLE) or "data")


def load_source(data: Data, seed: int) -> Source:
    """The data set that `data` asks for, or its fallback.

    Args:
        seed: of generated sources; real ones are the same for every seed.

    Raises:
        DataError: unknown source; not found, saying where it was looked for and how to get it; or not readable.
    """
    for name in filter(None, (data.source, data.fallback)):
        if name not in GENERATED and name not in IMPORTERS:
            known = ", ".join(sorted([*IMPORTERS, *GENERATED]))
            raise DataError(f"unknown data source {name!r}, expected one of {known}")
    if data.source in GENERATED:
        source = _generate(data, seed)
    elif path := _find(data):
        source = _read(IMPORTERS[data.source], path, data.split)
    else:
        source = load_source(replace(data, source=data.fallback, fallback="", path=""), seed)
        note = f"{data.source} was not found in {data_dir()}: {source.name} was used in its place"
        source = replace(source, notes=(note, *source.notes))
    return _limit_test(source, data.max_test_examples)


def _find(data: Data) -> Path | None:
    """Where the source lies; None when its fallback is to be used."""
    path = Path(data.path) if data.path else data_dir() / IMPORTERS[data.source].filename
    if path.exists():
        return path
    if data.fallback and not data.path:
        return None
    known = data.source in PUBLIC_SETS
    raise DataError(
        f"{data.source} was not found: {path} does not exist",
        f"{f'get it with `fedmed data fetch {data.source}`' if known else 'set data.path to it'}, or set "
        f"{DATA_DIR_VARIABLE} to the folder that holds {IMPORTERS[data.source].filename}",
    )


def _generate(data: Data, seed: int) -> Source:
    """Phantoms of the hospitals' domain; val is as large as test."""
    counts = {"train": data.train_patients, "val": data.test_patients, "test": data.test_patients}
    draw = GENERATED[data.source]
    parts = {split: tuple(draw(counts[split], seed, cast(Split, split))) for split in SPLITS}
    return Source(data.source, **parts, notes=(f"{_counts(data.source, parts)}, by patient",))


def _read(importer: Importer, path: Path, split_rule: str) -> Source:
    imported = {split: importer.read(path, split=split, split_rule=split_rule) for split in SPLITS}
    parts = {split: part.examples for split, part in imported.items()}
    if empty := [split for split in ("train", "test") if not parts[split]]:
        raise DataError(f"{importer.name} has no usable example in {' and '.join(empty)}", "get the data set again")
    notes = [f"{_counts(importer.name, parts)}, {split_rule} split"]
    notes += [_quarantine(split, part) for split, part in imported.items() if part.quarantined]
    notes += [note for split in ("val", "test") for note in _leaks(parts["train"], split, parts[split])]
    return Source(importer.name, **parts, notes=tuple(notes))


def _counts(name: str, parts: dict[str, tuple[Example, ...]]) -> str:
    train, val, test = (len(parts[split]) for split in SPLITS)
    return f"{name}: {train} train, {val} val and {test} test examples"


def _quarantine(split: str, part: Imported) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(part.quarantined.items()))
    return f"{split}: {sum(part.quarantined.values())} of {part.rows_read} rows quarantined ({reasons})"


def _leaks(train: Sequence[Example], split: str, held_out: Sequence[Example]) -> list[str]:
    """How many images and whole rows of a held-out split also occur in train, by content."""
    trained = {ref.data for example in train for ref in example.images}
    images = {ref.data for example in held_out for ref in example.images}
    trained_rows = {_row_key(example) for example in train}
    rows = sum(_row_key(example) in trained_rows for example in held_out)
    if not images & trained and not rows:
        return []
    return [
        f"leak: {len(images & trained)} of {len(images)} {split} images also occur in train, "
        f"and {rows} of {len(held_out)} {split} rows repeat a train row"
    ]


def _row_key(example: Example) -> tuple[tuple[bytes, ...], str, str]:
    return tuple(ref.data for ref in example.images), example.question.lower(), example.answer.lower()


def _limit_test(source: Source, limit: int) -> Source:
    if not 0 < limit < len(source.test):
        return source
    note = f"scores are of the first {limit} of {len(source.test)} test examples"
    return replace(source, test=source.test[:limit], notes=(*source.notes, note))
