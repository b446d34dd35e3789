"""What a site's cohorts have spent. Reserve before data is touched, commit after; never refunded; fails closed.

    Spending -> reserve (budget checked, on disk) -> training -> commit (on disk) -> the result may leave

    >>> ledger = Ledger(folder.ledger)                                                    # doctest: +SKIP
    >>> ledger.enrol("north", members)                                                    # doctest: +SKIP
    >>> reservation = ledger.reserve(spending, budget=8.0, delta=1e-5, fingerprint="...")  # doctest: +SKIP
    >>> ledger.commit(reservation, result_sha256="...")                                   # doctest: +SKIP

| guarantee           | for every patient, the composed epsilon of all reservations of all cohorts that the patient    |
|                     | was in, up to the last one, stays within the budget given to that `reserve`                    |
| unit                | the patient, known by a keyed pseudonym, over cohorts, runs, rounds, restarts, data versions   |
| renamed cohort, or  | the old name's spending counts: a cohort pays for every cohort that ever held one of its       |
| patients moved      | present patients (hospital_client.membership)                                                  |
| changed manifest    | the cohort's spending goes on, for newcomers too; the new members and fingerprint are noted    |
| killed at any point | a reservation on disk counts as spent, whether or not it was trained, committed or sent        |
| same task twice     | two reservations: whoever can answer from a stored result does that before asking the ledger   |
| mode none           | an event of noise 0: epsilon is infinite for good. No private task is taken on that cohort     |
|                     | again, since no budget can hold; others without privacy go on where the policy allows them     |
| cannot be trusted   | LedgerError on opening (see hospital_client.journal), so nothing is trained                    |

Lines: {"kind": "cohort", cohort, fingerprint of its patients, members: their pseudonyms}, {"kind": "reserve", fingerprint
of the data set, and the fields of Spending} and {"kind": "commit", "reservation": its sequence, "result_sha256"}. A kind
that this version does not know is a LedgerError.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fedmed.errors import BudgetExhausted, LedgerError
from fedmed.privacy.accounting import PrivacyEvent, epsilon
from hospital_client.chain import Line
from hospital_client.journal import Journal, create_journal, read_journal
from hospital_client.membership import Membership, fingerprint, pack, unpack
from hospital_client.witness import JournalFiles

Composer = Callable[[Sequence[PrivacyEvent], float], float]
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Spending:
    """What one task costs a cohort.

    Attributes:
        noise_multiplier, sample_rate, steps: of the training steps; noise 0 is a task without privacy.
        max_patients: cap on the patients of a step, 0 for none.
        num_patients: public upper bound of the cohort's patients, which a cap's cost depends on; 0 without a cap.
        metrics_noise_multiplier: noise of the evaluation counts that the task releases; 0 when it releases none.
    """

    cohort: str
    run: str
    round: int
    task_sha256: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    delta: float
    max_patients: int = 0
    num_patients: int = 0
    metrics_noise_multiplier: float = 0.0

    @property
    def events(self) -> list[PrivacyEvent]:
        """The training steps, and the evaluation where counts are released."""
        steps = PrivacyEvent(self.noise_multiplier, self.sample_rate, self.steps, self.max_patients, self.num_patients)
        events = [steps]
        if self.metrics_noise_multiplier > 0:
            events.append(PrivacyEvent(self.metrics_noise_multiplier, self.sample_rate, 1))
        return events


@dataclass(frozen=True, slots=True)
class Reservation:
    """A spending that is on disk; `sequence` is its line in the ledger."""

    sequence: int
    spending: Spending
    fingerprint: str


_SPENDING = typing.get_type_hints(Spending)


def _typed(kind: type[V], value: object) -> V:
    """`value`, a whole number also where a float is meant. Raises TypeError for another type: a sealed line may be of a
    release that wrote something else, and what cannot be counted must not be."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__}, expected {kind.__name__}")
    return value


class Entries:
    """The ledger as it reads: pure, no lock. `fedmed-site budget` uses it beside a running daemon."""

    def __init__(self, lines: Iterable[Line], compose: Composer = epsilon) -> None:
        self._compose = compose
        self.reservations: dict[int, Reservation] = {}
        self.committed: dict[int, str] = {}
        self.membership = Membership()
        self.generation = 0
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        """Takes up one verified line. Raises LedgerError for a kind or content of another version."""
        try:
            self._take_up(line)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise LedgerError(
                f"ledger line {line.sequence} is not an entry that this version knows",
                "install the FedMed release that wrote it, or a later one",
            ) from None
        self.generation = line.sequence

    def _take_up(self, line: Line) -> None:
        body = line.body
        match body["kind"]:
            case "cohort":
                self.membership.add(_typed(str, body["cohort"]), unpack(_typed(str, body["members"])))
            case "reserve":
                spending = Spending(**{name: _typed(kind, body[name]) for name, kind in _SPENDING.items()})
                self.reservations[line.sequence] = Reservation(
                    line.sequence, spending, _typed(str, body["fingerprint"])
                )
            case "commit":
                reserved = self.reservations[_typed(int, body["reservation"])]
                self.committed[reserved.sequence] = _typed(str, body["result_sha256"])
            case kind:
                raise ValueError(kind)

    @property
    def cohorts(self) -> list[str]:
        """Names that spent."""
        return sorted({item.spending.cohort for item in self._all()})

    def sharing(self, cohort: str) -> list[str]:
        """Other cohorts whose spending counts for this one, since they hold or held patients of it."""
        return sorted(self.membership.sharing(cohort, self.cohorts) - {cohort})

    def runs(self, cohort: str) -> list[str]:
        """Runs that spent of a cohort, in the order in which they first did."""
        return list(dict.fromkeys(item.spending.run for item in self._all() if item.spending.cohort == cohort))

    def spent_events(
        self, cohort: str | None, run: str | None = None, *, committed_only: bool = False
    ) -> list[PrivacyEvent]:
        """Events that count for a cohort, or those of one run. Reserved ones are spent, unless `committed_only`."""
        return [event for item in self.spent(cohort, run, committed_only=committed_only) for event in item.events]

    def spent(self, cohort: str | None, run: str | None = None, *, committed_only: bool = False) -> list[Spending]:
        """The spending behind `spent_events`: one item a task. Of no cohort: every task, whoever its patients were."""
        names = set(self.cohorts) if cohort is None else {cohort, *self.sharing(cohort)}
        return [
            item.spending
            for item in self._all()
            if item.spending.cohort in names
            and (run is None or item.spending.run == run)
            and (item.sequence in self.committed or not committed_only)
        ]

    def epsilon(
        self, cohort: str | None, delta: float, run: str | None = None, *, committed_only: bool = False
    ) -> float:
        """What those events cost together at `delta`; infinite after a task without privacy."""
        return self._epsilon(self.spent_events(cohort, run, committed_only=committed_only), delta)

    def open_reservation(self, task_sha256: str) -> Reservation | None:
        """The last reservation of a task, if it was not committed. One before it is of a training that was cut off."""
        found = [item for item in self._all() if item.spending.task_sha256 == task_sha256]
        return found[-1] if found and found[-1].sequence not in self.committed else None

    def check(self, spending: Spending, budget: float, delta: float) -> None:
        """Raises BudgetExhausted when `spending` would bring its cohort above `budget` at `delta`."""
        if spending.noise_multiplier == 0:
            return
        events = self.spent_events(spending.cohort)
        spent = self._epsilon(events, delta)
        if math.isinf(spent):
            raise BudgetExhausted(
                "the cohort was trained on without privacy, so its epsilon is infinite and no budget can hold",
                "private training needs a cohort of other patients",
            )
        total = self._epsilon([*events, *spending.events], delta)
        if not total <= budget:
            raise BudgetExhausted(
                f"the task would bring the cohort's epsilon to {total:.4g} at delta {delta:g}: spent {spent:.4g}, "
                f"asked {total - spent:.4g} more, budget {budget:.4g}",
                "plan fewer rounds or more noise; only the hospital can raise epsilon_budget in policy.yaml",
            )

    def _all(self) -> tuple[Reservation, ...]:
        return tuple(self.reservations.values())  # a copy: the daemon's status is read while a task reserves

    def _epsilon(self, events: Sequence[PrivacyEvent], delta: float) -> float:
        if any(event.noise_multiplier == 0 for event in events):
            return math.inf
        return self._compose(events, delta) if events else 0.0


class Ledger:
    """The only writer of a site's ledger; holds its lock.

    Args:
        files: ledger.jsonl and its witness, made by `create`, and the site's key.
        compose: epsilon of a list of events at a delta.

    Raises:
        LedgerError: on opening, when the file cannot be trusted or another process holds it.
    """

    def __init__(self, files: JournalFiles, compose: Composer = epsilon) -> None:
        self._journal = Journal(files)
        try:
            self.entries = Entries(self._journal.lines, compose)
        except LedgerError:
            self._journal.close()
            raise

    @staticmethod
    def create(files: JournalFiles) -> None:
        """An empty ledger. Raises LedgerError when there is one."""
        create_journal(files)

    @staticmethod
    def read(files: JournalFiles, compose: Composer = epsilon) -> Entries:
        """The verified entries, without the lock. Raises LedgerError as opening does."""
        return Entries(read_journal(files), compose)

    def enrol(self, cohort: str, members: frozenset[bytes]) -> None:
        """Notes who a cohort's patients are, when that is not what the ledger says of it. Spends nothing.

        Raises:
            LedgerError: it could not be written.
        """
        if self.entries.membership.members(cohort) != members:
            own = fingerprint(members, self._journal.files.key)
            self._append({"kind": "cohort", "cohort": cohort, "fingerprint": own, "members": pack(members)})

    def reserve(self, spending: Spending, *, budget: float, delta: float, fingerprint: str) -> Reservation:
        """Sets a spending aside for good; when this returns it is on disk and counts as spent.

        Args:
            spending: what the task will do.
            budget: epsilon that the cohort may reach at `delta`, this spending included.
            fingerprint: keyed hash of the data set that will be read.

        Raises:
            BudgetExhausted: nothing was written.
            LedgerError: it could not be written; nothing may be trained.
        """
        self.entries.check(spending, budget, delta)
        line = self._append({"kind": "reserve", "fingerprint": fingerprint, **dataclasses.asdict(spending)})
        return self.entries.reservations[line.sequence]

    def commit(self, reservation: Reservation, result_sha256: str) -> None:
        """Notes what came of a reservation, before it leaves the site. Raises LedgerError when it cannot."""
        self._append({"kind": "commit", "reservation": reservation.sequence, "result_sha256": result_sha256})

    def epsilon(self, cohort: str | None, delta: float, run: str | None = None) -> float:
        """Spent by a cohort (or by one run on it) so far, reservations included; of no cohort: by all tasks together."""
        return self.entries.epsilon(cohort, delta, run)

    def spent_events(self, cohort: str, run: str | None = None) -> list[PrivacyEvent]:
        """Every event of the cohort that counts as spent."""
        return self.entries.spent_events(cohort, run)

    def close(self) -> None:
        """Gives the lock back."""
        self._journal.close()

    def _append(self, body: dict[str, object]) -> Line:
        line = self._journal.append(body)
        self.entries.add(line)
        return line
