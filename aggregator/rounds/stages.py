"""Stages of a run: where its next round stands, and whether what a stage has trained is kept. Pure.

    stages, committed rounds -> Place of the next round, None after the last
    stage, its rounds' scores on the validation split -> Verdict on the round just trained

The scores are of public data: looking at them costs no privacy. The privacy of all rounds is planned as if none were left out.

| at the end of a round                                       | what is committed                        | the stage |
| ----------------------------------------------------------- | ---------------------------------------- | --------- |
| none of the below                                           | what it trained                          | goes on   |
| last round of the stage, or `patience` rounds without a     | the best round's adapter, with patience, | ends      |
| score above the best one                                    | else what it trained                     |           |
| the stage ends, and that gains less than `min_gain` over    | the adapter that the stage began with    | ends      |
| what it began with                                          |                                          |           |

Rounds that were skipped for want of replies count as rounds of the stage, use up no patience, and have the score of the one
before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from aggregator.rounds.store import RoundRecord
from fedmed.data.difficulty import HARDEST
from fedmed.errors import FederationError
from fedmed.experiment import Curriculum, Stage
from fedmed.messages import Selection
from fedmed.models.kinds import part_of


@dataclass(frozen=True, slots=True)
class Place:
    """Where a round stands.

    Attributes:
        number: in the run, from 1; within: in its stage, from 1.
        name, stage: of its stage.
        begin: the run's round whose adapter the stage began with.
    """

    number: int
    within: int
    name: str
    stage: Stage
    begin: int

    @property
    def selection(self) -> Selection:
        """Of the records: the pace rises linearly from the stage's first round to all records in its last."""
        curriculum, rounds = self.stage.curriculum, self.stage.training.rounds
        done = 1.0 if rounds == 1 else (self.within - 1) / (rounds - 1)
        first = curriculum.start_difficulty
        return Selection(
            tasks=curriculum.tasks,
            sources=curriculum.sources,
            grading=curriculum.grading,
            max_difficulty=first + int((HARDEST - first) * done),
            easiest_share=curriculum.start_share + (1 - curriculum.start_share) * done,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a round: `keep`, the run's round whose adapter is committed with it, None for its own; and why."""

    ends_stage: bool
    keep: int | None = None
    reason: str = ""


def require_stages(stages: Mapping[str, Stage], adapter: Iterable[str], *, validated: bool) -> None:
    """What of the stages cannot be, told before any site is asked.

    Args:
        adapter: the keys of its tensors.
        validated: whether there is a validation split.

    Raises:
        FederationError: a stage is judged and there is no split for it, or none of the tensors is in its parts.
    """
    if not validated and any(stage.curriculum.is_judged for stage in stages.values()):
        raise FederationError(
            "a stage is judged by a validation split, and there is none",
            "set curriculum.patience=0 and curriculum.min_gain=-1",
        )
    there = {part_of(key) for key in adapter}
    for name, stage in stages.items():
        parts = stage.curriculum.parts
        if parts and there.isdisjoint(parts):
            raise FederationError(
                f"{name or 'the run'}: curriculum.parts={list(parts)}: the adapter has no tensor to train in them, it has some in "
                f"{sorted(part for part in there if part)}",
                "name their layers in lora.targets, or the modules in lora.modules_to_save",
            )


def next_place(stages: Mapping[str, Stage], records: Sequence[RoundRecord]) -> Place | None:
    """Where the round after the committed ones stands; `records` begin with round 0."""
    names = list(stages)
    ended = [record.round for record in records if record.ends_stage]
    if len(ended) == len(names):
        return None
    name, begin = names[len(ended)], ended[-1] if ended else 0
    number = len(records)
    return Place(number, number - begin, name, stages[name], begin)


def judge(place: Place, scores: Mapping[int, float | None], skipped: Collection[int] = ()) -> Verdict:
    """The verdict on the round at `place`.

    Args:
        scores: validation score by the run's round, from `place.begin` to `place.number`; None where none was taken.
        skipped: rounds among these that trained nothing.
    """
    curriculum = place.stage.curriculum
    last = place.within == place.stage.training.rounds
    best = place.number
    if curriculum.patience:
        best = max(range(place.begin, place.number + 1), key=lambda number: (_value(scores[number]), -number))
        # A stage must not end before it has had its chance, so its beginning counts as a best score too.
        waited = sum(number not in skipped for number in range(best + 1, place.number + 1))
        last = last or waited >= curriculum.patience
    if not last:
        return Verdict(ends_stage=False)
    gain = _value(scores[best]) - _value(scores[place.begin])
    if curriculum.min_gain > -1 and gain < curriculum.min_gain:
        text = f"gained {gain:+.4f}, expected {curriculum.min_gain:+g}"
        return Verdict(True, place.begin, f"{_metric(curriculum)} {text}: back to round {place.begin}")
    if best != place.number:
        return Verdict(True, best, f"{_metric(curriculum)} was best in round {best}: back to it")
    return Verdict(True)


def _metric(curriculum: Curriculum) -> str:
    return f"validation {curriculum.metric}"


def _value(score: float | None) -> float:
    """None, a metric without any item, is as good as 0."""
    return 0.0 if score is None else score
