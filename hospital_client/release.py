"""What leaves a site, all of it: every message is built here, and `RELEASED` says where each field's privacy comes from.

    a round's outcome, policy, ledger -> SiteInfo | TrainResult | EvaluateResult | Refusal | StatusReply -> socket -> relay

    >>> RELEASED[TrainResult]["noisy_correct"]
    <Source.ACCOUNTED_COUNT: 'accounted count'>

The status reply is among them: it is for a person at the hospital, but the relay may call the same socket. Change one
patient of the data, and what may change of a message:

| source          | is                                                               | may change                               |
| --------------- | ---------------------------------------------------------------- | ---------------------------------------- |
| MECHANISM       | sums of clipped gradients with noise, charged to the ledger      | as much as epsilon and delta say         |
| ACCOUNTED_COUNT | counts with noise, charged to the ledger                         | as much as epsilon and delta say         |
| KEYED_HASH      | HMAC under site.key of the cohort's name; of the data where the  | nothing; with policy                     |
|                 | policy's dataset_fingerprint says so                             | `dataset_fingerprint: data` that it did  |
| POLICY          | a line of policy.yaml, or of the data what policy.yaml says      | nothing; with `patient_count: rounded`   |
|                 |                                                                  | or `exact` the count may                 |
| PUBLIC_TASK     | worked out from tasks alone                                      | nothing                                  |
| PUBLIC_NAME     | a name or version that everybody knows                           | nothing                                  |
| OPERATION       | what the daemon does, and that it does not: too few patients, no | nothing, but across the edge of          |
|                 | budget, a record that breaks training                            | min_patients or a budget that cohorts    |
|                 |                                                                  | share, or by a record that breaks        |

tests/unit/hospital_client/test_release.py holds the messages to this table. Of errors, words leave only where they name no
more than the task and the policy; a fault that a record may have caused is `failed`, not even its kind is told. Epsilons are of
all tasks in the site's ledger, whoever the patients were: an upper bound for each of them.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import fedmed
from fedmed.errors import (
    BudgetExhausted,
    FederationError,
    FedMedError,
    LedgerError,
    ModelError,
    PolicyRefusal,
    WireError,
)
from fedmed.messages import EvaluateResult, EvaluateTask, Refusal, SiteInfo, TrainResult, TrainTask, peek
from fedmed.privacy.counts import NO_COUNTS, NoisyCounts
from fedmed.privacy.patient_scores import NoisyScores
from fedmed.wire.site_pb2 import StatusReply
from hospital_client.audit import finite

if TYPE_CHECKING:  # the relay builds its refusals here, and is started anew for each message
    from hospital_client.ledger import Ledger
    from hospital_client.policy import Policy


class TaskMismatch(ModelError):
    """The task does not fit the site's base model. Names only what the task holds and public hashes."""


class Busy(FederationError):
    """Not now: the same task may succeed later. Names nothing of the data."""


class Source(StrEnum):
    """Where a field's privacy comes from; see the module's table."""

    MECHANISM = "mechanism"
    ACCOUNTED_COUNT = "accounted count"
    KEYED_HASH = "keyed hash"
    POLICY = "policy"
    PUBLIC_TASK = "public task"
    PUBLIC_NAME = "public name"
    OPERATION = "operation"


PAYLOAD = "payload"
RELEASED: Mapping[type, Mapping[str, Source]] = {
    SiteInfo: {
        "run": Source.PUBLIC_TASK,
        "site": Source.PUBLIC_NAME,
        "version": Source.PUBLIC_NAME,
        "num_patients": Source.POLICY,
        "dataset_fingerprint": Source.KEYED_HASH,
        "epsilon_spent": Source.PUBLIC_TASK,
        "epsilon_budget": Source.POLICY,
    },
    TrainResult: {
        PAYLOAD: Source.MECHANISM,
        "payload_sha256": Source.MECHANISM,
        "run": Source.PUBLIC_TASK,
        "round": Source.PUBLIC_TASK,
        "site": Source.PUBLIC_NAME,
        "task_sha256": Source.PUBLIC_TASK,
        "num_patients": Source.POLICY,
        "steps": Source.PUBLIC_TASK,
        "epsilon": Source.PUBLIC_TASK,
        "delta": Source.PUBLIC_TASK,
        "epsilon_total": Source.PUBLIC_TASK,
        "dataset_fingerprint": Source.KEYED_HASH,
        "noisy_correct": Source.ACCOUNTED_COUNT,
        "noisy_patients": Source.ACCOUNTED_COUNT,
    },
    EvaluateResult: {
        "run": Source.PUBLIC_TASK,
        "round": Source.PUBLIC_TASK,
        "site": Source.PUBLIC_NAME,
        "task_sha256": Source.PUBLIC_TASK,
        "scores": Source.PUBLIC_TASK,
        "noisy_sums": Source.ACCOUNTED_COUNT,
        "noisy_weights": Source.ACCOUNTED_COUNT,
    },
    Refusal: {
        "run": Source.PUBLIC_TASK,
        "round": Source.PUBLIC_TASK,
        "site": Source.PUBLIC_NAME,
        "code": Source.OPERATION,
        "message": Source.OPERATION,
        "retry": Source.OPERATION,
    },
    StatusReply: {
        "site": Source.PUBLIC_NAME,
        "version": Source.PUBLIC_NAME,
        "state": Source.OPERATION,
        "base_model": Source.PUBLIC_NAME,
        "base_sha256": Source.PUBLIC_NAME,
        "run": Source.PUBLIC_TASK,
        "round": Source.PUBLIC_TASK,
        "num_patients": Source.POLICY,
        "epsilon_spent": Source.PUBLIC_TASK,
        "epsilon_budget": Source.POLICY,
        "delta": Source.POLICY,
        "pid": Source.OPERATION,
        "tasks_done": Source.OPERATION,
        "tasks_refused": Source.OPERATION,
    },
}
_WORDS_LEAVE = (PolicyRefusal, WireError, TaskMismatch, Busy)
# Without the ledger's numbers: they depend on which other cohorts the patients were in.
_BUDGET = (
    "the task would bring the cohort's epsilon above the site's budget, or the cohort was trained on without privacy; "
    "plan fewer rounds or more noise: only the hospital can raise epsilon_budget"
)
_GENERIC = "the site could not do the task ({code}); the site's log has the details"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a round leaves to be released: adapter tensors as bytes, and counts where the task asked for them.

    `payload`: may come in pieces, which may be views of tensors. `kept`: safetensors bytes that stay at the site for the run's
    next round; empty when there is nothing to keep.
    """

    payload: bytes | Sequence[bytes | memoryview]
    counts: NoisyCounts = NO_COUNTS
    kept: bytes = b""


@dataclass(frozen=True, slots=True)
class Release:
    """The messages of one site, as things stand.

    Attributes:
        site: its public name.
        num_patients: the true count; leaves only as the policy says.
        cohort_hash, data_hash: keyed; the policy chooses which of the two leaves.
    """

    site: str
    policy: Policy
    ledger: Ledger
    num_patients: int
    cohort_hash: str
    data_hash: str

    @property
    def fingerprint(self) -> str:
        """The keyed hash that leaves."""
        return self.data_hash if self.policy.dataset_fingerprint == "data" else self.cohort_hash

    def _epsilon(self, delta: float, run: str | None = None) -> float:
        """Of all tasks that this site's ledger holds: no patient of it lost more.

        What a cohort's own patients lost may be less, but depends on which other cohorts they were in: across the edge of
        a cohort one patient would change it. The budget is held against that number, inside.
        """
        return finite(self.ledger.epsilon(None, delta, run))

    def info(self, run: str) -> SiteInfo:
        """The answer to a DescribeTask."""
        return SiteInfo(
            run=run,
            site=self.site,
            version=fedmed.__version__,
            num_patients=self.policy.released_patients(self.num_patients),
            dataset_fingerprint=self.fingerprint,
            epsilon_spent=self._epsilon(self.policy.delta),
            epsilon_budget=self.policy.epsilon_budget,
        )

    def result(self, task: TrainTask, task_sha256: str, counts: NoisyCounts) -> TrainResult:
        """All of a trained round but its payload. Both epsilons hold at the task's delta."""
        delta = task.privacy.delta if task.privacy.mode == "dp" else self.policy.delta
        return TrainResult(
            run=task.run,
            round=task.round,
            site=self.site,
            task_sha256=task_sha256,
            num_patients=self.policy.released_patients(self.num_patients),
            steps=task.privacy.steps,
            epsilon=self._epsilon(delta, task.run),
            delta=delta,
            epsilon_total=self._epsilon(delta),
            dataset_fingerprint=self.fingerprint,
            noisy_correct=counts.correct,
            noisy_patients=counts.patients,
        )

    def evaluated(self, task: EvaluateTask, task_sha256: str, found: NoisyScores) -> EvaluateResult:
        """All of an evaluation."""
        return EvaluateResult(
            run=task.run,
            round=task.round,
            site=self.site,
            task_sha256=task_sha256,
            scores=task.scores,
            noisy_sums=found.sums,
            noisy_weights=found.weights,
        )

    def status(self, **operation: Any) -> StatusReply:
        """The answer to a status request. `operation`: the daemon's own fields."""
        return StatusReply(
            site=self.site,
            version=fedmed.__version__,
            num_patients=self.policy.released_patients(self.num_patients),
            epsilon_spent=self._epsilon(self.policy.delta),
            epsilon_budget=self.policy.epsilon_budget,
            delta=self.policy.delta,
            **operation,
        )


def refusal(site: str, error: Exception, run: str = "", round_number: int = 0) -> Refusal:
    """A Refusal that tells no more than it may: see the module's last paragraph."""
    code = error.code if isinstance(error, (*_WORDS_LEAVE, BudgetExhausted, LedgerError)) else "failed"
    text = _BUDGET if isinstance(error, BudgetExhausted) else _GENERIC.format(code=code)
    if isinstance(error, _WORDS_LEAVE):
        text = str(error)
    return Refusal(run[:128], round_number, site, code, text, retry=isinstance(error, Busy))


def came_before_the_data(error: Exception) -> bool:
    """Whether an error is a refusal by policy, budget, wire or model: its words name no record. Else it is a fault."""
    return isinstance(error, (*_WORDS_LEAVE, BudgetExhausted))


def relay_refusal(head: bytes, error: FedMedError, retry: bool, socket: str) -> Refusal:
    """The relay's own: it has no data, and the daemon did not answer. The site's name is the daemon's to give. `head`: of the
    frame, its first HEAD_BYTES."""
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    if socket:
        text = text.replace(socket, "its socket")  # the hospital's paths are not the aggregator's business
    try:
        task = peek(head)[0]
    except WireError:
        return Refusal(run="", round=0, site="", code=error.code, message=text, retry=retry)
    run, number = getattr(task, "run", ""), getattr(task, "round", 0)
    return Refusal(run=run, round=number, site="", code=error.code, message=text, retry=retry)


def cohort_hash(key: bytes, cohort: str) -> str:
    """HMAC-SHA256 of a cohort's name under the site's key: the same whatever becomes of the data."""
    return hmac.new(key, f"cohort {cohort}".encode(), hashlib.sha256).hexdigest()
