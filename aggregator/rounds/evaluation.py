"""The federated evaluation: asked once after the last round, committed whole, told as scores of all sites, each, and the worst.

    last round's adapter -> EvaluateTask -> every site that is there -> replies checked -> rounds/evaluation.json
    EvaluationRecord -> told_scores -> report, events, registry

| what happens                                  | what follows                                                            |
| --------------------------------------------- | ----------------------------------------------------------------------- |
| a site refuses, fails or does not answer      | named in the record with the reason; the others count                   |
| nobody answers                                | committed so: nobody is asked again                                     |
| killed before the record is on disk           | asked again with the same bytes: sites hand the stored sums over        |
| the record is of another adapter, or broken   | made anew                                                               |
| sums that no honest site sends                | the site is left out, with the reason                                   |
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregator.rounds.store import RoundRecord, RoundStore
from fedmed.config import Experiment
from fedmed.errors import FederationError
from fedmed.files import write_json
from fedmed.messages import EvaluateResult, EvaluateTask, Refusal, decode
from fedmed.privacy.patient_scores import NoisyScores, Told, sums_problem, told

EVALUATION_FILE = "evaluation.json"
# More patients than the largest hospital groups hold.
MAX_PATIENTS = 10_000_000


@dataclass(frozen=True, slots=True)
class SiteSums:
    """What one site answered, as in EvaluateResult."""

    site: str
    sums: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def noisy(self) -> NoisyScores:
        return NoisyScores(self.sums, self.weights)


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One committed evaluation.

    Attributes:
        round, adapter_sha256: whose adapter was evaluated.
        scores: that were asked for; noise_multiplier: of the release, 0 without privacy.
        epsilon: what it cost a held-out patient at `delta`; None without privacy.
        left_out: site -> why there is no answer of it.
    """

    round: int
    adapter_sha256: str
    scores: tuple[str, ...]
    noise_multiplier: float
    epsilon: float | None
    delta: float
    replies: tuple[SiteSums, ...]
    left_out: Mapping[str, str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EvaluationRecord:
        """What `to_dict` gave. Raises TypeError or KeyError for anything else."""
        replies = tuple(SiteSums(item["site"], tuple(item["sums"]), tuple(item["weights"])) for item in data["replies"])
        return cls(**{**data, "scores": tuple(data["scores"]), "replies": replies})


@dataclass(frozen=True, slots=True)
class ToldScore:
    """One score: over all sites together, of each, and of the worst of those that can be told, "" where not two can."""

    name: str
    all: Told
    sites: Mapping[str, Told]
    worst: str


def evaluation_due(experiment: Experiment, store: RoundStore) -> bool:
    """Whether it is asked for, and not committed for the last round's adapter."""
    return experiment.evaluation.federated and read_evaluation(store.folder, store.last()) is None


def read_evaluation(rounds: Path, last: RoundRecord | None) -> EvaluationRecord | None:
    """The committed evaluation of the last round's adapter in the folder of the rounds; None where there is none."""
    try:
        record = EvaluationRecord.from_dict(json.loads((rounds / EVALUATION_FILE).read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if last is not None and record.adapter_sha256 == last.adapter_sha256 else None


def evaluated_at(rounds: Path) -> float:
    """When it was committed, in seconds since 1970."""
    return (rounds / EVALUATION_FILE).stat().st_mtime


def commit_evaluation(rounds: Path, record: EvaluationRecord) -> None:
    """On disk, whole, when this returns. Raises FederationError when the disk does not take it."""
    try:
        write_json(rounds / EVALUATION_FILE, record.to_dict())
    except OSError as error:
        raise FederationError(
            f"the evaluation cannot be written to {rounds}: {error.strerror}",
            "make room or mend the disk, then go on: the sites hand over what they had answered, and spend nothing",
        ) from error


def check_answer(frame: bytes, task: EvaluateTask, task_sha256: str, site: str) -> SiteSums:
    """What a site answered, when it is an answer to this task that an honest site may give.

    Raises:
        FedMedError: with the reason.
    """
    result, _ = decode(frame)
    if isinstance(result, Refusal):
        raise FederationError(f"refused ({result.code}): {result.message}")
    if not isinstance(result, EvaluateResult):
        raise FederationError(f"answered with {result.type}, expected evaluate_result")
    found, right = (result.run, result.round, result.site), (task.run, task.round, site)
    if found != right:
        raise FederationError(f"answered for run, round, site {found}, expected {right}")
    if result.task_sha256 != task_sha256:
        raise FederationError(f"answered task {result.task_sha256[:12]!r}, expected {task_sha256[:12]!r}")
    if result.scores != task.scores:
        raise FederationError(f"answered scores {list(result.scores)!r:.120}, expected {list(task.scores)}")
    sums = SiteSums(site, result.noisy_sums, result.noisy_weights)
    if problem := sums_problem(task.scores, sums.noisy, task.privacy.noise_multiplier, MAX_PATIENTS):
        raise FederationError(problem)
    return sums


def told_scores(record: EvaluationRecord) -> list[ToldScore]:
    """Every score as people read it."""
    return [_told(record, name) for name in record.scores]


def _told(record: EvaluationRecord, name: str) -> ToldScore:
    def over(replies: Sequence[SiteSums]) -> Told:
        return told(record.scores, name, [reply.noisy for reply in replies], record.noise_multiplier)

    sites = {reply.site: over([reply]) for reply in record.replies}
    known = {site: own.value for site, own in sites.items() if own.value is not None}
    worst = min(known, key=lambda site: (known[site], site)) if len(known) > 1 else ""
    return ToldScore(name, over(record.replies), sites, worst)
