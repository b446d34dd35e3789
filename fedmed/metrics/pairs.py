"""Two sets of answers to the same questions: by how much each score differs, how sure that is, and what it means in words. Pure.

    >>> rows = changes([{"exact_match": (0.0, 1.0)}], [{"exact_match": (1.0, 1.0)}], ["p1"])
    >>> rows[0].difference.value
    1.0

The first set is what is compared with (another version, or a control), the second the model itself.

| the sentence says           | when                                                                                            |
| --------------------------- | ----------------------------------------------------------------------------------------------- |
| the difference is real      | the 95 % interval of the paired bootstrap over patients leaves out 0                            |
| ... is not shown to be real | it holds 0: chance alone may have made it                                                       |
| too few patients            | below MIN_PATIENTS: an interval over so few says nothing, however narrow it is                  |
| the same on blank images    | no answer changes, or the score does not change by a real difference                            |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedmed.metrics.answers import MAIN, kind_of
from fedmed.metrics.sums import RESAMPLES, Estimate, Kind, Sums, difference
from fedmed.metrics.uncertainty import mcnemar

# With fewer, resampled patients are so often the same ones that the interval is far too narrow; with one it has no width.
MIN_PATIENTS = 10


@dataclass(frozen=True, slots=True)
class Change:
    """One score of both sets of answers, over the items that have it in both.

    Attributes:
        first, second: the score of each set; None where it is not defined.
        difference: second less first, with its interval.
    """

    score: str
    first: float | None
    second: float | None
    difference: Estimate
    items: int
    patients: int

    @property
    def real(self) -> bool:
        """Whether the interval leaves out 0, and is over patients enough to mean something."""
        return self.difference.real and self.enough

    @property
    def enough(self) -> bool:
        return self.patients >= MIN_PATIENTS


@dataclass(frozen=True, slots=True)
class RightAlone:
    """Items that one of two models alone gets right, and McNemar's exact p; items count as independent there."""

    first: int
    second: int
    p: float


def changes(
    first: Sequence[Mapping[str, Sums]],
    second: Sequence[Mapping[str, Sums]],
    patients: Sequence[str],
    kinds: Callable[[str], Kind] = kind_of,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Change]:
    """One row a score, by name."""
    rows = []
    for score in sorted({name for parts in second for name in parts}):
        both = [place for place, parts in enumerate(second) if score in parts and score in first[place]]
        if both:
            old, new = ([side[place][score] for place in both] for side in (first, second))
            owners, kind = [patients[place] for place in both], kinds(score)
            found = difference(old, new, owners, kind, seed=seed, resamples=resamples)
            rows.append(Change(score, _value(kind, old), _value(kind, new), found, len(both), len(set(owners))))
    return rows


def right_alone(first: Sequence[bool], second: Sequence[bool]) -> RightAlone:
    """Counts and p of `mcnemar`. Raises DataError when the two are not of the same items."""
    p = mcnemar(first, second)
    pairs = list(zip(first, second, strict=True))
    return RightAlone(sum(old and not new for old, new in pairs), sum(new and not old for old, new in pairs), p)


def main_changes(rows: Sequence[Change]) -> list[Change]:
    """Of the scores that a model is judged by, those there are, in the order of MAIN."""
    by_name = {row.score: row for row in rows}
    return [by_name[name] for name in MAIN if name in by_name and by_name[name].difference.value is not None]


def comparison_sentence(row: Change, first: str, second: str) -> str:
    """Whether the difference of two versions in one score is real. `first`, `second`: their names."""
    amount = f"{row.score} is {shown(row.second)} with {second} and {shown(row.first)} with {first}"
    if not row.enough:
        return f"{amount}: there are too few patients to say whether the difference is real ({_interval(row)})."
    if row.real:
        better = second if (row.difference.value or 0) > 0 else first
        return f"{amount}: {better} is better, and the difference is real ({_interval(row)})."
    return f"{amount}: the difference is not shown to be real, chance may have made it ({_interval(row)})."


def control_sentence(row: Change, under: str) -> str:
    """How one score compares with a control's. `row`: the control first; `under`: the control, in words."""
    amount = f"{row.score} is {shown(row.second)}, and {shown(row.first)} {under}"
    if not row.enough:
        return f"{amount}: {_patients(row)}, too few to say whether the difference is real."
    if not row.real:
        return f"{amount}: no difference is shown."
    return f"{amount}: it is {'better' if (row.difference.value or 0) > 0 else 'WORSE'} by a real difference."


def same_on_blank(row: Change, changed: int) -> bool:
    """Whether the model has to be told that it scores the same on blank images. Args: as `blank_sentence`."""
    return not changed or (row.enough and not row.real)


def blank_sentence(row: Change, changed: int) -> str:
    """What blank images tell about one score. `row`: blank first; `changed`: items whose answer is another without the image."""
    numbers = (
        f"{row.score} is {shown(row.second)}, and {shown(row.first)} on blank images "
        f"({_interval(row)}; {changed} of {row.items} answers change)."
    )
    if same_on_blank(row, changed):
        return f"The model scores the same on blank images: {numbers} Nothing here shows that it uses the image."
    if not row.enough:
        return f"There are too few patients to say whether the images help: {numbers}"
    return f"The images {'help' if (row.difference.value or 0) > 0 else 'harm'}: {numbers}"


def shown(value: float | None) -> str:
    """A score as a sentence says it; all that sentences are about lie in [0, 1]."""
    return "not defined" if value is None else f"{100 * value:.1f} %"


def _interval(row: Change) -> str:
    found = row.difference
    if found.value is None or found.low is None or found.high is None:
        return "difference not defined"
    points = f"{100 * found.value:+.1f} points, 95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return f"{points}, {_patients(row)}"


def _patients(row: Change) -> str:
    return f"{row.patients} patient{'' if row.patients == 1 else 's'}"


def _value(kind: Kind, parts: Sequence[Sums]) -> float | None:
    return kind.value([sum(column) for column in zip(*parts, strict=True)])
