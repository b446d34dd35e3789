"""What every importer is and gives; see `fedmed.data.importers` for the table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from fedmed.data.schema import SPLITS, Example, Split
from fedmed.errors import DataError

SPLIT_RULES = ("official", "image")


@dataclass
class Tally:
    """What became of the rows of a source so far: read = kept + quarantined, once a stream has ended.

    Attributes:
        rows_read: rows of the split.
        quarantined: reason -> rows left out for it. A reason names no row.
    """

    rows_read: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)

    @property
    def left_out(self) -> int:
        return self.quarantined.total()


@dataclass(frozen=True)
class Imported:
    """Examples of one split in memory, with what became of every row of the source.

    Attributes:
        examples: those of the rows kept; images as bytes that decode.
        rows_read: rows of this split in the source: kept plus quarantined.
        quarantined: reason -> rows left out for it. A reason names no row.
    """

    examples: tuple[Example, ...] = field(repr=False)
    rows_read: int
    quarantined: Mapping[str, int]


class Importer(ABC):
    """Reads one format. A row makes one example, or several (a conversation), or is quarantined.

    Attributes:
        name: as `data.source` of an experiment names it, and as `Example.source` holds it.
        description: one line for a person who chooses.
        filename: the file or folder that it looks for under $FEDMED_DATA_DIR.
    """

    name: str
    description: str
    filename: str

    @abstractmethod
    def stream(self, path: Path, tally: Tally, *, split: str, split_rule: str = "official") -> Iterator[Example]:
        """The examples of a split (train, val or test), one after the other; images as bytes that decode.

        Memory holds a few rows at a time, however many the source has. The tally is complete when the stream has ended.

        Raises:
            DataError: as the package's table says; a wrong split before the first example is asked for.
        """

    def read(self, path: Path, *, split: str, split_rule: str = "official") -> Imported:
        """The whole split in memory. Raises DataError as `stream`."""
        tally = Tally()
        examples = tuple(self.stream(path, tally, split=split, split_rule=split_rule))
        return Imported(examples, tally.rows_read, dict(tally.quarantined))


def require_split(name: str, split: str, split_rule: str, rules: tuple[str, ...] = SPLIT_RULES) -> Split:
    """The split, typed. Raises DataError for a split, or a split rule, that the importer `name` does not offer."""
    if split not in SPLITS:
        raise DataError(f"{name} has no split {split!r}, expected one of {', '.join(SPLITS)}")
    if split_rule not in rules:
        raise DataError(f"{name} offers no split by {split_rule!r}", f"set data.split to {' or '.join(rules)}")
    return cast(Split, split)
