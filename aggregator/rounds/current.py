"""The round that is going on: what its sites were sent, what came back, and what its record says of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from aggregator.aggregation.run import RoundAggregate, Taken
from aggregator.rounds.exchange import Reply
from aggregator.rounds.stages import Place
from aggregator.rounds.store import SiteReport
from fedmed.messages import TrainResult, TrainTask
from fedmed.models.encoding import State
from fedmed.privacy.counts import NoisyCounts, federated_accuracy


@dataclass(frozen=True, slots=True)
class Order:
    """What sites of one rank are sent: the task, the adapter that they start from, and the shapes that they must return."""

    task: TrainTask
    task_sha256: str
    sent: Mapping[str, Tensor]
    expected: State


@dataclass
class CurrentRound:
    """What the present round has gathered so far. `frames`: the orders' by rank, until they are sent.
    `equal`: all sites weigh the same,
    as asked or because one does not tell its size."""

    place: Place
    aggregate: RoundAggregate
    orders: dict[int, Order]
    frames: dict[int, bytes]
    equal: bool = False
    reports: list[SiteReport] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def number(self) -> int:
        return self.place.number


def local_accuracy(reports: Sequence[SiteReport], noise_multiplier: float) -> tuple[float, float] | tuple[None, None]:
    """Accuracy of the incoming adapter over the sites' own patients, and its error; None without counts."""
    counts = [NoisyCounts(report.noisy_correct, report.noisy_patients) for report in reports]
    return (federated_accuracy(counts, noise_multiplier) if noise_multiplier and counts else None) or (None, None)


def site_report(result: TrainResult, reply: Reply, weight: float, taken: Taken) -> SiteReport:
    """Of a reply that was taken."""
    return SiteReport(
        site=result.site,
        num_patients=result.num_patients,
        steps=result.steps,
        epsilon=result.epsilon,
        delta=result.delta,
        epsilon_total=result.epsilon_total,
        reply_seconds=reply.seconds,
        bytes_up=len(reply.frame or b""),
        dataset_fingerprint=result.dataset_fingerprint,
        weight=weight,
        noisy_correct=result.noisy_correct,
        noisy_patients=result.noisy_patients,
        update_norm=taken.norm,
        update_bound=taken.bound if taken.scaled else None,
    )
