"""What a site does with a task: one frame in, one frame out, and a bad task is a Refusal, never an exception.

    frame -> decode -> answered before? -> policy -> task fits the base model? -> RESERVE (ledger, on disk)
          -> train -> result on disk -> COMMIT (ledger, on disk) -> frame

Records are read for training only after RESERVE; before it the site knows its data by count and fingerprint alone.
Every decision is in audit.jsonl before it takes effect. Knows no torch: training comes in as a `Trainer`.

| what goes wrong                                | code crossing the wire    | spent?                            |
| ---------------------------------------------- | ------------------------- | --------------------------------- |
| not a frame, damaged, wrong protocol           | wire                      | no                                |
| outside the policy, too few patients           | policy                    | no                                |
| other base model, or tensors that do not fit   | model                     | no                                |
| above the budget                               | budget_exhausted          | no                                |
| another task is being trained                  | federation, retry         | no                                |
| ledger cannot be written                       | ledger                    | only if the reservation was on disk |
| any fault while training                       | failed, or its class      | yes, for good                     |
| the daemon is told to stop while training      | federation, retry         | yes, for good                     |
| killed at any point after RESERVE              | (no answer)               | yes, for good                     |
| the same task again after it was answered      | the stored result, again  | nothing more                      |

Messages of policy, budget and wire errors name only what the task itself or the public policy says, and are sent as
they are. Of every other fault only the class is sent; the site's own log has the details.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import fedmed
from fedmed.errors import BudgetExhausted, FederationError, FedMedError, ModelError, PolicyRefusal, WireError
from fedmed.messages import DescribeTask, Message, Refusal, SiteInfo, TrainResult, TrainTask, decode, encode, sha256_hex
from hospital_client.audit import Audit, finite
from hospital_client.ledger import Ledger, Reservation, Spending
from hospital_client.policy import Policy, check_cohort, check_task
from hospital_client.results import ResultStore

log = logging.getLogger("fedmed.site")
ShouldStop = Callable[[], bool]
TrainRound = Callable[[ShouldStop], bytes]
_VERBATIM = (PolicyRefusal, BudgetExhausted, WireError)
_GENERIC = "the site could not do the task ({code}); the site's log has the details"


class TaskMismatch(ModelError):
    """The task does not fit the site's base model. Names only what the task holds and public hashes."""


class Busy(FederationError):
    """Not now: the same task may succeed later. Names nothing of the data."""


class Trainer(Protocol):
    """Trains one round. hospital_client.trainer holds the real one; tests bring their own."""

    def prepare(self, task: TrainTask, payload: memoryview, lot_size: float) -> TrainRound:
        """Everything that can be checked without the data; the returned call reads it, trains, and gives the payload.

        Args:
            task, payload: as they arrived; allowed by the policy.
            lot_size: expected patients a step, which divides the summed gradients.

        Raises:
            TaskMismatch: base model, frozen tensors, keys or shapes are not the site's.
            WireError: the payload is not an adapter.

        The returned call takes `should_stop` and raises FederationError when that told it to stop.
        """
        ...


@dataclass(frozen=True, slots=True)
class Cohort:
    """What the site knows of its data without reading a record."""

    name: str
    num_patients: int
    fingerprint: str


@dataclass(slots=True)
class Progress:
    """For `status`: the task being trained or the last one."""

    training: bool = False
    run: str = ""
    round: int = 0
    done: int = 0
    refused: int = 0


class Site:
    """A site behind its socket. `handle` may be called from several threads; one task trains at a time."""

    def __init__(
        self,
        name: str,
        policy: Policy,
        cohort: Cohort,
        *,
        ledger: Ledger,
        audit: Audit,
        results: ResultStore,
        trainer: Trainer,
    ) -> None:
        self.name = name
        self.policy = policy
        self.cohort = cohort
        self.ledger = ledger
        self.progress = Progress()
        self._audit = audit
        self._results = results
        self._trainer = trainer
        self._training = threading.Lock()
        self._stop = threading.Event()

    @property
    def num_patients(self) -> int:
        """The patient count as the policy releases it."""
        return self.policy.released_patients(self.cohort.num_patients)

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        """Asks a training task to end between two steps and takes no further one."""
        self._stop.set()

    def epsilon_spent(self) -> float:
        """Of the cohort, at the policy's delta."""
        return self.ledger.epsilon(self.cohort.name, self.policy.delta)

    def handle(self, frame: bytes) -> bytes:
        """Answers one frame. Never raises for a bad task or a fault inside: that is a Refusal frame."""
        task_sha256 = sha256_hex(frame)
        message: Message | None = None
        try:
            message, payload = decode(frame)
            if isinstance(message, TrainTask):
                return self._answer_train(message, payload, task_sha256)
            if isinstance(message, DescribeTask):
                return self._describe(message)
            raise WireError(f"a site answers describe and train tasks, got a {message.type} message")
        except Exception as error:  # noqa: BLE001  the one place where a fault becomes a Refusal
            return self._refuse(error, message, task_sha256)

    def _describe(self, task: DescribeTask) -> bytes:
        check_cohort(self.policy, self.cohort.num_patients)
        spent = self.epsilon_spent()
        self._audit.write("described", run=task.run, epsilon=spent)
        info = SiteInfo(
            run=task.run,
            site=self.name,
            version=fedmed.__version__,
            num_patients=self.num_patients,
            dataset_fingerprint=self.cohort.fingerprint,
            epsilon_spent=finite(spent),
            epsilon_budget=self.policy.epsilon_budget,
        )
        return encode(info)

    def _answer_train(self, task: TrainTask, payload: memoryview, task_sha256: str) -> bytes:
        if (stored := self._results.load(task_sha256)) is not None:
            return self._resend(task, task_sha256, stored)
        if self.stopping or not self._training.acquire(blocking=False):
            raise Busy("the site is shutting down" if self.stopping else "the site is training another task")
        try:
            self.progress.run, self.progress.round, self.progress.training = task.run, task.round, True
            return self._train(task, payload, task_sha256)
        finally:
            self.progress.training = False
            self._training.release()

    def _resend(self, task: TrainTask, task_sha256: str, stored: bytes) -> bytes:
        """The stored result; finishes a commit that a crash cut off after the result was stored."""
        if self.ledger.entries.open_reservation(task_sha256) is not None:
            self._finish_commit(task_sha256, stored)
        self._audit.write("resent", run=task.run, round=task.round, task_sha256=task_sha256)
        return stored

    def _finish_commit(self, task_sha256: str, stored: bytes) -> None:
        if not self._training.acquire(blocking=False):
            raise Busy("the site is training another task")
        try:
            if (reservation := self.ledger.entries.open_reservation(task_sha256)) is not None:
                self.ledger.commit(reservation, sha256_hex(stored))
        finally:
            self._training.release()

    def _train(self, task: TrainTask, payload: memoryview, task_sha256: str) -> bytes:
        check_task(self.policy, task, self.cohort.num_patients)
        lot_size = task.privacy.sample_rate * self.policy.nominal_patients(self.cohort.num_patients)
        train_round = self._trainer.prepare(task, payload, lot_size)
        reservation = self._reserve(task, task_sha256)
        started = time.monotonic()
        trained = self._run(train_round)
        seconds = time.monotonic() - started
        frame = encode(self._result(task, task_sha256, seconds), trained)
        # Stored before it is committed: a crash in between loses no round, and the reservation counts either way.
        self._results.save(task_sha256, frame)
        self.ledger.commit(reservation, sha256_hex(frame))
        self._audit.write(
            "released", run=task.run, round=task.round, task_sha256=task_sha256, epsilon=self.epsilon_spent()
        )
        self.progress.done += 1
        log.info("run %s round %d: trained %d steps in %.1f s", task.run, task.round, task.privacy.steps, seconds)
        return frame

    def _run(self, train_round: TrainRound) -> bytes:
        try:
            return train_round(self._stop.is_set)
        except FederationError:
            if self.stopping:
                raise Busy("the site was told to stop while it trained; what was reserved stays spent") from None
            raise

    def _reserve(self, task: TrainTask, task_sha256: str) -> Reservation:
        """The ledger's reservation and the audit's line, both on disk: from here on the records may be read."""
        private = task.privacy.mode == "dp"
        spending = Spending(
            cohort=self.cohort.name,
            run=task.run,
            round=task.round,
            task_sha256=task_sha256,
            noise_multiplier=task.privacy.noise_multiplier if private else 0.0,
            sample_rate=task.privacy.sample_rate,
            steps=task.privacy.steps,
            delta=task.privacy.delta,
            max_patients=task.privacy.max_patients,
            num_patients=self.policy.most_patients(self.cohort.num_patients) if task.privacy.max_patients else 0,
        )
        policy = self.policy
        reservation = self.ledger.reserve(
            spending, budget=policy.epsilon_budget, delta=policy.delta, fingerprint=self.cohort.fingerprint
        )
        if not private:
            log.warning("run %s round %d trains WITHOUT PRIVACY: epsilon is infinite for good", task.run, task.round)
        self._audit.write(
            "accepted",
            code="" if private else "no_privacy",
            run=task.run,
            round=task.round,
            task_sha256=task_sha256,
            epsilon=self.epsilon_spent(),
            message="" if private else "TRAINED WITHOUT PRIVACY: the cohort's epsilon is infinite from here on",
        )
        return reservation

    def _result(self, task: TrainTask, task_sha256: str, seconds: float) -> TrainResult:
        """Everything that leaves beside the adapter. Both epsilons hold at the task's delta."""
        delta = task.privacy.delta if task.privacy.mode == "dp" else self.policy.delta
        return TrainResult(
            run=task.run,
            round=task.round,
            site=self.name,
            task_sha256=task_sha256,
            num_patients=self.num_patients,
            steps=task.privacy.steps,
            epsilon=finite(self.ledger.epsilon(self.cohort.name, delta, task.run)),
            delta=delta,
            epsilon_total=finite(self.ledger.epsilon(self.cohort.name, delta)),
            dataset_fingerprint=self.cohort.fingerprint,
            train_seconds=round(seconds, 1),
        )

    def _refuse(self, error: Exception, message: Message | None, task_sha256: str) -> bytes:
        """A Refusal that tells no more than it may; the log has the rest."""
        code = error.code if isinstance(error, FedMedError) else "failed"
        open_text = isinstance(error, (*_VERBATIM, TaskMismatch, Busy))
        text = str(error) if open_text else _GENERIC.format(code=code)
        run, round_number = getattr(message, "run", "")[:128], getattr(message, "round", 0)
        log.warning("run %s round %d: refused (%s): %s", ascii(run), round_number, code, describe_fault(error))
        self.progress.refused += 1
        try:
            decision = "refused" if open_text else "failed"
            self._audit.write(decision, code=code, run=run, round=round_number, task_sha256=task_sha256, message=text)
        except OSError as failure:  # a full disk must not hide the refusal from the aggregator
            log.error("audit.jsonl cannot be written: %s", failure.strerror)
        return encode(Refusal(run, round_number, self.name, code, text, retry=isinstance(error, Busy)))


def describe_fault(error: Exception) -> str:
    """An error for the site's log: our own in one line, others with where they arose.

    The text of a foreign exception may quote a record (a KeyError does), so it is left out, save for kinds that speak
    of shapes, memory and the system.
    """
    if isinstance(error, FedMedError):
        cause = error.__cause__
        return error.message + (f"\n{describe_fault(cause)}" if isinstance(cause, Exception) else "")
    text = (
        (error.strerror or "") if isinstance(error, OSError) else str(error) if isinstance(error, RuntimeError) else ""
    )
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    return f"{type(error).__name__} {text}".rstrip() + (f"\n{frames}" if frames else "")
