"""Which selections of records leave the privacy accounting as it is. Pure; knows no torch.

The accounting is of a Poisson draw of patients, each drawn without regard to any record, and of a sum over those drawn of a
function of the patient's own records. A selection keeps that when it decides about each record by that record alone (and by
what is public, such as the incoming adapter): it is then a part of the patient's function.

| selection                             | decides by                                | with mode dp                        |
| ------------------------------------- | ----------------------------------------- | ----------------------------------- |
| tasks, sources                        | the record                                | allowed, costs nothing              |
| max_difficulty, grading text          | the record                                | allowed, costs nothing              |
| max_difficulty, grading loss          | the record and the present adapter, which | allowed, costs nothing              |
|                                       | follows from noisy sums                   |                                     |
| easiest_share < 1                     | how the record compares with all others   | refused: one patient more would     |
|                                       |                                           | change which records of others count |
| an order in which records are visited | the same, and it replaces the draw        | not offered                         |
"""

from __future__ import annotations

from dataclasses import dataclass

GRADINGS = ("text", "loss")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of a drawn patient's records a round trains on: decided for each record by itself, or refused under privacy.

    Attributes:
        tasks, sources: as Example has them; empty takes all.
        grading: `text` or `loss`: how a record's difficulty from 1 to 5 is told.
        max_difficulty: no record above it.
        easiest_share: of the site's records, the easiest by their text; below 1 only without privacy and with grading `text`.
    """

    tasks: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    grading: str = "text"
    max_difficulty: int = 5
    easiest_share: float = 1.0


def selection_problems(selection: Selection, mode: str) -> list[str]:
    """What is wrong with a selection under privacy mode `dp` or `none`, one line each; empty when nothing is."""
    problems = []
    if selection.grading not in GRADINGS:
        problems.append(f"grading={selection.grading!r}: expected {' or '.join(GRADINGS)}")
    if not 1 <= selection.max_difficulty <= 5:
        problems.append(f"max_difficulty={selection.max_difficulty}: expected 1 to 5")
    if not 0 < selection.easiest_share <= 1:
        problems.append(f"easiest_share={selection.easiest_share:g}: expected > 0 and <= 1")
    elif selection.easiest_share < 1 and mode == "dp":
        problems.append(
            f"easiest_share={selection.easiest_share:g}: expected 1 with privacy.mode=dp, since which records are the "
            "easiest depends on other patients' records; take max_difficulty, whose bounds are absolute"
        )
    elif selection.easiest_share < 1 and selection.grading == "loss":
        problems.append(
            f"easiest_share={selection.easiest_share:g}: expected 1 with grading=loss, since a share is of all records, put in "
            "order by their text; take max_difficulty"
        )
    return problems
