"""What importers of rows share: which examples a manifest takes, and which split holds an image back.

    >>> examples = sifted(made, tally)          # `made`: of each row its example, or the reason why it makes none

| under the split rule | a row of train or val                                                                   |
| -------------------- | --------------------------------------------------------------------------------------- |
| official             | is in the split that the files say                                                      |
| image                | the same, but quarantined (ELSEWHERE) where its patient is also in a later split of     |
|                      | train, val, test: what is held out stays held out                                       |

Sources without a val split give up a tenth of their training patients for it, chosen by `rowwise.hash_share`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from fedmed.data.importers.base import Tally
from fedmed.data.importers.rowwise import EMPTY
from fedmed.data.manifest_line import format_line, parse_line
from fedmed.data.schema import SPLITS, Example
from fedmed.errors import DataError

ANSWER_TYPE = "answer type is neither open nor closed"
ELSEWHERE = "is held out: its image or patient is also in another split"
_MAX_LINE_BYTES, _PATH_BYTES = 1 << 20, 16  # as fedmed.data.manifest reads and writes them


def sifted(made: Iterable[Example | str], tally: Tally) -> Iterator[Example]:
    """The examples that a manifest takes; every other row is quarantined under its reason."""
    for row in made:
        tally.rows_read += 1
        reason = row if isinstance(row, str) else why_refused(row)
        if reason:
            tally.quarantined[reason] += 1
        elif isinstance(row, Example):
            yield row


def why_refused(example: Example) -> str:
    """Why a manifest would not take an example, in words that show nothing of it; empty when it would."""
    if not example.question.strip() or not example.answer.strip():
        return EMPTY
    line = format_line(example, [f"images/{place:06d}.png" for place, _ in enumerate(example.images)])
    if len(line) + _PATH_BYTES * len(example.images) > _MAX_LINE_BYTES:
        return "its texts are longer than a line of a manifest may be"
    try:
        parse_line(line, 0)
    except DataError as error:
        return error.message.partition(": ")[2]
    return ""


def held_back(split: str, rule: str, patients_of: Callable[[str], Iterable[str]]) -> frozenset[str]:
    """The patients of the splits after `split`, whose rows it must not have; none under the official rule."""
    later = SPLITS[SPLITS.index(split) + 1 :] if rule == "image" else ()
    return frozenset(patient for other in later for patient in patients_of(other))


def plain_yes_no(answer: str) -> str:
    """`Yes`, `no.` and their like in the one spelling that a model should learn; other answers as they are."""
    plain = answer.lower().rstrip(".")
    return plain if plain in ("yes", "no") else answer
