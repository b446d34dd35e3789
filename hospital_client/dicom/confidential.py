"""The attributes that PS3.15's Basic Application Level Confidentiality Profile takes out: Annex E, table E.1-1.

confidential_tags.csv, edition 2026c: one attribute a line with the action of the column "Basic Prof.":

| action | a de-identifier must                       |
| ------ | ------------------------------------------ |
| X      | remove it                                  |
| Z      | empty it, or put a value that tells nothing |
| D      | put a value that tells nothing             |
| U      | put another UID                            |

X/Z and the like: by the type of the attribute in its kind of file. Three families of the table are in code: curves
(50xx,xxxx), overlay data (60xx,3000) and comments (60xx,4000), and private attributes (odd groups).
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

_FILE = Path(__file__).with_name("confidential_tags.csv")


class Attribute(NamedTuple):
    """A row of the table."""

    action: str
    keyword: str


@cache
def table() -> dict[int, Attribute]:
    """Tag -> row; of the attributes with one tag each."""
    with _FILE.open(encoding="ascii", newline="") as file:
        return {int(row["tag"], 16): Attribute(row["action"], row["keyword"]) for row in csv.DictReader(file)}


def is_curve(tag: int) -> bool:
    return tag >> 24 == 0x50 and not is_private(tag)


def is_overlay(tag: int) -> bool:
    """Whether it is the picture, or the comment, of an overlay plane."""
    return tag >> 24 == 0x60 and not is_private(tag) and tag & 0xFFFF in (0x3000, 0x4000)


def is_private(tag: int) -> bool:
    return bool(tag >> 16 & 1)
