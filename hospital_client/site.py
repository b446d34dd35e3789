"""What a site does with a task: one frame in, one frame out, and a bad task is a Refusal, never an exception.

    frame -> decode -> answered before? -> policy -> task fits the base model? -> RESERVE (ledger, on disk)
          -> train, or evaluate held-out patients -> result on disk -> COMMIT (ledger, on disk) -> frame

Records are read for training only after RESERVE; before it the site knows its data by count and fingerprint alone.
Every decision is in audit.jsonl before it takes effect. What the answers say is built in hospital_client/release.py.
Knows no torch: training comes in as a `Trainer`.

| what goes wrong                                | code crossing the wire    | spent?                            |
| ---------------------------------------------- | ------------------------- | --------------------------------- |
| not a frame, damaged, wrong protocol           | wire                      | no                                |
| outside the policy, too few patients           | policy                    | no                                |
| an evaluation, and no held-out patients        | policy                    | no                                |
| other base model, or tensors that do not fit   | model                     | no                                |
| above the budget                               | budget_exhausted          | no                                |
| another task is being trained                  | federation, retry         | no                                |
| this very task is being trained, for a server  | its result, when it is    | nothing more                      |
| that died since: another one asks for it again | there                     |                                   |
| ledger cannot be written                       | ledger                    | only if the reservation was on disk |
| any fault while training                       | failed                    | yes, for good                     |
| the daemon is told to stop while training      | federation, retry         | yes, for good                     |
| killed at any point after RESERVE              | (no answer)               | yes, for good                     |
| the same task again after it was answered      | the stored result, again  | nothing more                      |
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from fedmed.errors import FederationError, FedMedError, PolicyRefusal, WireError
from fedmed.messages import DescribeTask, EvaluateTask, Message, TrainTask, decode, encode, sha256_hex
from hospital_client.audit import Audit
from hospital_client.cohort import Cohort as Cohort
from hospital_client.faults import describe_fault
from hospital_client.held_out import HeldOut
from hospital_client.kept import Kept
from hospital_client.ledger import Ledger, Reservation, Spending
from hospital_client.policy import Policy, check_cohort, check_evaluation, check_task
from hospital_client.release import Busy, Release, Trained, came_before_the_data, refusal
from hospital_client.results import ResultStore

log = logging.getLogger("fedmed.site")
T = TypeVar("T")
ShouldStop = Callable[[], bool]
TrainRound = Callable[[ShouldStop], Trained]


class Trainer(Protocol):
    """Trains one round. hospital_client.trainer holds the real one; tests bring their own."""

    def prepare(self, task: TrainTask, payload: memoryview, lot_size: float) -> TrainRound:
        """Everything that can be checked without the data; the returned call reads it, evaluates, trains, and gives the
        payload and counts.

        Args:
            task, payload: as they arrived; allowed by the policy.
            lot_size: expected patients a step, which divides the summed gradients.

        Raises:
            TaskMismatch: base model, frozen tensors, keys or shapes are not the site's.
            WireError: the payload is not an adapter.

        The returned call takes `should_stop` and raises FederationError when that told it to stop.
        """
        ...


@dataclass(slots=True)
class Progress:
    """For `status`: the task being trained or the last one."""

    training: bool = False
    run: str = ""
    round: int = 0
    done: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _Work:
    """A task whose reservation is on disk; `started`: as time.monotonic()."""

    reservation: Reservation
    started: float


class Site:
    """A site behind its socket. `handle` may be called from several threads; one task trains at a time.

    Raises:
        LedgerError: the ledger does not take the cohort's members down; then nothing may be trained.
    """

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
        held_out: HeldOut | None = None,
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
        self._in_training = ""  # hash of the task that holds the lock
        self._stop = threading.Event()
        self._held_out = held_out
        ledger.enrol(cohort.name, cohort.members)
        if held_out is not None:
            ledger.enrol(held_out.cohort.name, held_out.cohort.members)

    @property
    def release(self) -> Release:
        """What may leave, as things stand."""
        cohort = self.cohort
        return Release(
            self.name,
            self.policy,
            self.ledger,
            cohort.num_patients,
            cohort_hash=cohort.name_hash,
            data_hash=cohort.fingerprint,
        )

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
            if isinstance(message, TrainTask | EvaluateTask):
                return self._answer(message, payload, task_sha256)
            if isinstance(message, DescribeTask):
                return self._describe(message)
            raise WireError(f"a site answers describe, train and evaluate tasks, got a {message.type} message")
        except Exception as error:  # noqa: BLE001  the one place where a fault becomes a Refusal
            return self._refuse(error, message, task_sha256)

    def _describe(self, task: DescribeTask) -> bytes:
        check_cohort(self.policy, self.cohort.num_patients)
        self._audit.write("described", run=task.run, epsilon=self.epsilon_spent())
        return encode(self.release.info(task.run))

    def _answer(self, task: TrainTask | EvaluateTask, payload: memoryview, task_sha256: str) -> bytes:
        waited = self._wait_for_same(task_sha256)
        if (stored := self._results.load(task_sha256)) is not None:
            return self._resend(task, task_sha256, stored)
        if waited:
            raise Busy("the site trained this task a moment ago and has no result; what was reserved stays spent")
        if self.stopping or not self._training.acquire(blocking=False):
            raise Busy("the site is shutting down" if self.stopping else "the site is training another task")
        try:
            self._in_training = task_sha256
            self.progress.run, self.progress.round, self.progress.training = task.run, task.round, True
            return (
                self._train(task, payload, task_sha256)
                if isinstance(task, TrainTask)
                else self._evaluate(task, payload, task_sha256)
            )
        finally:
            self._in_training = ""
            self.progress.training = False
            self._training.release()

    def _wait_for_same(self, task_sha256: str) -> bool:
        """Whether this very task was being trained; if so, that is over when this returns."""
        if self._in_training != task_sha256:
            return False
        with self._training:
            return True

    def _resend(self, task: TrainTask | EvaluateTask, task_sha256: str, stored: bytes) -> bytes:
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
        work = self._begin(self.cohort, self._cost_of_training(task, task_sha256), "trains")
        trained = self._run(train_round)
        frame = encode(self.release.result(task, task_sha256, trained.counts), trained.payload)
        kept = Kept(task.run, task.round, trained.kept) if trained.kept else None
        return self._finish(work, frame, f"trained {task.privacy.steps} steps", kept)

    def _evaluate(self, task: EvaluateTask, payload: memoryview, task_sha256: str) -> bytes:
        if self._held_out is None:
            raise PolicyRefusal(
                "the site has no held-out patients", "it names a manifest of them as held_out in site.yaml"
            )
        cohort, privacy = self._held_out.cohort, task.privacy
        check_evaluation(self.policy, task, cohort.num_patients)
        score = self._held_out.evaluator.prepare_evaluation(task, payload)
        noise = privacy.noise_multiplier if privacy.protects else 0.0
        cost = Spending(cohort.name, task.run, task.round, task_sha256, noise, 1.0, 1, privacy.delta)
        work = self._begin(cohort, cost, "evaluates")
        found = self._run(score)
        return self._finish(
            work, encode(self.release.evaluated(task, task_sha256, found)), "evaluated held-out patients"
        )

    def _run(self, work: Callable[[ShouldStop], T]) -> T:
        try:
            return work(self._stop.is_set)
        except FederationError:
            if self.stopping:
                raise Busy("the site was told to stop while it trained; what was reserved stays spent") from None
            raise

    def _cost_of_training(self, task: TrainTask, task_sha256: str) -> Spending:
        privacy = task.privacy
        return Spending(
            cohort=self.cohort.name,
            run=task.run,
            round=task.round,
            task_sha256=task_sha256,
            noise_multiplier=privacy.noise_multiplier if privacy.protects else 0.0,
            sample_rate=privacy.sample_rate,
            steps=privacy.steps,
            delta=privacy.delta,
            max_patients=privacy.max_patients,
            num_patients=self.policy.most_patients(self.cohort.num_patients) if privacy.max_patients else 0,
            metrics_noise_multiplier=privacy.metrics_noise_multiplier,
        )

    def _begin(self, cohort: Cohort, cost: Spending, verb: str) -> _Work:
        """The ledger's reservation and the audit's line, both on disk: from here on the records may be read."""
        policy = self.policy
        reservation = self.ledger.reserve(
            cost, budget=policy.epsilon_budget, delta=policy.delta, fingerprint=cohort.fingerprint
        )
        open_handed = cost.noise_multiplier == 0
        if open_handed:
            log.warning("run %s round %d %s WITHOUT PRIVACY: epsilon is infinite for good", cost.run, cost.round, verb)
        self._audit.write(
            "accepted",
            code="no_privacy" if open_handed else "",
            run=cost.run,
            round=cost.round,
            task_sha256=cost.task_sha256,
            epsilon=self.ledger.epsilon(cohort.name, policy.delta),
            message=f"{verb} WITHOUT PRIVACY: the cohort's epsilon is infinite from here on" if open_handed else "",
        )
        return _Work(reservation, time.monotonic())

    def _finish(self, work: _Work, frame: bytes, what: str, kept: Kept | None = None) -> bytes:
        """The result, stored, committed and audited: it may leave."""
        cost, seconds = work.reservation.spending, round(time.monotonic() - work.started, 3)
        # Stored before it is committed: a crash in between loses no round, and the reservation counts either way.
        self._results.save(cost.task_sha256, frame, kept)
        self.ledger.commit(work.reservation, sha256_hex(frame))
        self._audit.write(
            "released",
            run=cost.run,
            round=cost.round,
            task_sha256=cost.task_sha256,
            epsilon=self.ledger.epsilon(cost.cohort, self.policy.delta),
            seconds=seconds,
        )
        self.progress.done += 1
        log.info("run %s round %d: %s in %.1f s", cost.run, cost.round, what, seconds)
        return frame

    def _refuse(self, error: Exception, message: Message | None, task_sha256: str) -> bytes:
        """A Refusal that tells no more than it may; the log and the audit have the error's own code, the log the rest."""
        told = refusal(self.name, error, getattr(message, "run", ""), getattr(message, "round", 0))
        code = error.code if isinstance(error, FedMedError) else told.code
        log.warning("run %s round %d: refused (%s): %s", ascii(told.run), told.round, code, describe_fault(error))
        self.progress.refused += 1
        early = came_before_the_data(error)
        decision, text = ("refused", str(error)) if early else ("failed", told.message)
        try:
            self._audit.write(
                decision, code=code, run=told.run, round=told.round, task_sha256=task_sha256, message=text
            )
        except OSError as failure:  # a full disk must not hide the refusal from the aggregator
            log.error("audit.jsonl cannot be written: %s", failure.strerror)
        return encode(told)
