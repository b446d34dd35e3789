"""What a site does with a task: one frame in, one frame out, and a bad task is a Refusal, never an exception.

    frame -> decode -> answered before? -> policy -> task fits the base model? -> RESERVE (ledger, on disk)
          -> train -> result on disk -> COMMIT (ledger, on disk) -> frame

Records are read for training only after RESERVE; before it the site knows its data by count and fingerprint alone.
Every decision is in audit.jsonl before it takes effect. What the answers say is built in hospital_client/release.py.
Knows no torch: training comes in as a `Trainer`.

| what goes wrong                                | code crossing the wire    | spent?                            |
| ---------------------------------------------- | ------------------------- | --------------------------------- |
| not a frame, damaged, wrong protocol           | wire                      | no                                |
| outside the policy, too few patients           | policy                    | no                                |
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
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fedmed.data.manifest import Manifest
from fedmed.errors import FederationError, FedMedError, WireError
from fedmed.messages import DescribeTask, Message, TrainTask, decode, encode, sha256_hex
from hospital_client.audit import Audit
from hospital_client.kept import Kept
from hospital_client.ledger import Ledger, Reservation, Spending
from hospital_client.policy import Policy, check_cohort, check_task
from hospital_client.release import Busy, Release, Trained, came_before_the_data, cohort_hash, refusal
from hospital_client.results import ResultStore

log = logging.getLogger("fedmed.site")
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


@dataclass(frozen=True, slots=True)
class Cohort:
    """What the site knows of its data without reading a record.

    Attributes:
        members: keyed pseudonyms of its patients (fedmed.data.manifest.pseudonym).
        fingerprint, name_hash: of the data and of the name, both under the site's key (hospital_client/release.py).
    """

    name: str
    members: frozenset[bytes] = field(repr=False)
    fingerprint: str
    name_hash: str = ""

    @classmethod
    def of(cls, name: str, manifest: Manifest, key: bytes) -> Cohort:
        """The patients of a manifest under a name of site.yaml."""
        members = frozenset(manifest.pseudonyms(key))
        return cls(name, members, manifest.fingerprint(key), cohort_hash(key, name))

    @property
    def num_patients(self) -> int:
        """With those who withdrew consent: the public number does not tell when somebody does."""
        return len(self.members)


@dataclass(slots=True)
class Progress:
    """For `status`: the task being trained or the last one."""

    training: bool = False
    run: str = ""
    round: int = 0
    done: int = 0
    refused: int = 0


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
        ledger.enrol(cohort.name, cohort.members)

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
            if isinstance(message, TrainTask):
                return self._answer_train(message, payload, task_sha256)
            if isinstance(message, DescribeTask):
                return self._describe(message)
            raise WireError(f"a site answers describe and train tasks, got a {message.type} message")
        except Exception as error:  # noqa: BLE001  the one place where a fault becomes a Refusal
            return self._refuse(error, message, task_sha256)

    def _describe(self, task: DescribeTask) -> bytes:
        check_cohort(self.policy, self.cohort.num_patients)
        self._audit.write("described", run=task.run, epsilon=self.epsilon_spent())
        return encode(self.release.info(task.run))

    def _answer_train(self, task: TrainTask, payload: memoryview, task_sha256: str) -> bytes:
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
            return self._train(task, payload, task_sha256)
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
        seconds = round(time.monotonic() - started, 3)
        frame = encode(self.release.result(task, task_sha256, trained.counts), trained.payload)
        # Stored before it is committed: a crash in between loses no round, and the reservation counts either way.
        kept = Kept(task.run, task.round, trained.kept) if trained.kept else None
        self._results.save(task_sha256, frame, kept)
        self.ledger.commit(reservation, sha256_hex(frame))
        self._audit.write(
            "released",
            run=task.run,
            round=task.round,
            task_sha256=task_sha256,
            epsilon=self.epsilon_spent(),
            seconds=seconds,
        )
        self.progress.done += 1
        log.info("run %s round %d: trained %d steps in %.1f s", task.run, task.round, task.privacy.steps, seconds)
        return frame

    def _run(self, train_round: TrainRound) -> Trained:
        try:
            return train_round(self._stop.is_set)
        except FederationError:
            if self.stopping:
                raise Busy("the site was told to stop while it trained; what was reserved stays spent") from None
            raise

    def _reserve(self, task: TrainTask, task_sha256: str) -> Reservation:
        """The ledger's reservation and the audit's line, both on disk: from here on the records may be read."""
        private = task.privacy.protects
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
            metrics_noise_multiplier=task.privacy.metrics_noise_multiplier,
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
