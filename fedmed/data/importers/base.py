"""What every importer is and gives; see `fedmed.data.importers` for the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from fedmed.data.schema import SPLITS, Example, Split
from fedmed.errors import DataError

SPLIT_RULES = ("official", "image")


@dataclass(frozen=True)
class Imported:
    """Examples of one split, with what became of every row of the source.

    Attributes:
        examples: the rows kept; images as bytes that decode.
        rows_read: rows of this split in the source: kept plus quarantined.
        quarantined: reason -> rows left out for it. A reason names no row.
    """

    examples: tuple[Example, ...] = field(repr=False)
    rows_read: int
    quarantined: Mapping[str, int]


class Importer(Protocol):
    """Reads one format.

    Attributes:
        name: as `data.source` of an experiment names it, and as `Example.source` holds it.
        description: one line for a person who chooses.
        filename: the file or folder that it looks for under $FEDMED_DATA_DIR.
    """

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def filename(self) -> str: ...

    def read(self, path: Path, *, split: str, split_rule: str = "official") -> Imported:
        """The examples of a split (train, val or test). Raises DataError as the package's table says."""
        ...


def require_split(name: str, split: str, split_rule: str, rules: tuple[str, ...] = SPLIT_RULES) -> Split:
    """The split, typed. Raises DataError for a split, or a split rule, that the importer `name` does not offer."""
    if split not in SPLITS:
        raise DataError(f"{name} has no split {split!r}, expected one of {', '.join(SPLITS)}")
    if split_rule not in rules:
        raise DataError(f"{name} offers no split by {split_rule!r}", f"set data.split to {' or '.join(rules)}")
    return cast(Split, split)
