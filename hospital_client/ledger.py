"""What a site's cohorts have spent. Reserve before data is touched, commit after; never refunded; fails closed.

    Spending -> reserve (budget checked, on disk) -> training -> commit (on disk) -> the result may leave

    >>> ledger = Ledger(folder.ledger, folder.key)                                        # doctest: +SKIP
    >>> reservation = ledger.reserve(spending, budget=8.0, delta=1e-5, fingerprint="...")  # doctest: +SKIP
    >>> ledger.commit(reservation, result_sha256="...")                                   # doctest: +SKIP

| guarantee           | the composed epsilon of all reservations of a cohort stays within the budget given to `reserve`|
| unit                | a cohort: patients under one name in site.yaml, over runs, rounds, restarts and data versions  |
| changed manifest    | the spending goes on: it belongs to the cohort's name; the new fingerprint is noted            |
| killed at any point | a reservation on disk counts as spent, whether or not it was trained, committed or sent        |
| same task twice     | two reservations: whoever can answer from a stored result does that before asking the ledger   |
| mode none           | an event of noise 0: epsilon is infinite for good. No private task is taken on that cohort     |
|                     | again, since no budget can hold; others without privacy go on where the policy allows them     |
| cannot be trusted   | LedgerError on opening (see hospital_client.journal), so nothing is trained                    |

Lines: {"kind": "reserve", fingerprint, and the fields of Spending} and {"kind": "commit", "reservation": its sequence,
"result_sha256"}. A kind that this version does not know is a LedgerError.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmed.errors import BudgetExhausted, LedgerError
from fedmed.privacy.accounting import PrivacyEvent, epsilon
from hospital_client.journal import Journal, Line, create_journal, read_journal

Composer = Callable[[Sequence[PrivacyEvent], float], float]


@dataclass(frozen=True, slots=True)
class Spending:
    """What one task costs a cohort: `steps` noisy steps. `noise_multiplier` 0 is a task without privacy.

    Attributes:
        max_patients: cap on the patients of a step, 0 for none.
        num_patients: public upper bound of the cohort's patients, which a cap's cost depends on; 0 without a cap.
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

    @property
    def event(self) -> PrivacyEvent:
        return PrivacyEvent(self.noise_multiplier, self.sample_rate, self.steps, self.max_patients, self.num_patients)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A spending that is on disk; `sequence` is its line in the ledger."""

    sequence: int
    spending: Spending
    fingerprint: str


class Entries:
    """The ledger as it reads: pure, no lock. `fedmed-site budget` uses it beside a running daemon."""

    def __init__(self, lines: Iterable[Line], compose: Composer = epsilon) -> None:
        self._compose = compose
        self.reservations: dict[int, Reservation] = {}
        self.committed: dict[int, str] = {}
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        """Takes up one verified line. Raises LedgerError for a kind or content of another version."""
        body = line.body
        try:
            if body["kind"] == "reserve":
                spending = Spending(**{field.name: body[field.name] for field in dataclasses.fields(Spending)})
                self.reservations[line.sequence] = Reservation(line.sequence, spending, body["fingerprint"])
                return
            if body["kind"] == "commit" and body["reservation"] in self.reservations:
                self.committed[body["reservation"]] = body["result_sha256"]
                return
        except (KeyError, TypeError):
            pass
        raise LedgerError(
            f"ledger line {line.sequence} is not an entry that this version knows",
            "install the FedMed release that wrote it, or a later one",
        )

    @property
    def cohorts(self) -> list[str]:
        return sorted({item.spending.cohort for item in self._all()})

    def runs(self, cohort: str) -> list[str]:
        """Runs that spent of a cohort, in the order in which they first did."""
        return list(dict.fromkeys(item.spending.run for item in self._all() if item.spending.cohort == cohort))

    def spent_events(self, cohort: str, run: str | None = None, *, committed_only: bool = False) -> list[PrivacyEvent]:
        """Events of a cohort, or of one run on it. Reserved ones count as spent unless `committed_only`."""
        return [
            item.spending.event
            for item in self._all()
            if item.spending.cohort == cohort
            and (run is None or item.spending.run == run)
            and (item.sequence in self.committed or not committed_only)
        ]

    def epsilon(self, cohort: str, delta: float, run: str | None = None, *, committed_only: bool = False) -> float:
        """What those events cost together at `delta`; infinite after a task without privacy."""
        return self._epsilon(self.spent_events(cohort, run, committed_only=committed_only), delta)

    def open_reservation(self, task_sha256: str) -> Reservation | None:
        """The last reservation of a task that was not committed."""
        found = [
            item
            for item in self._all()
            if item.spending.task_sha256 == task_sha256 and item.sequence not in self.committed
        ]
        return found[-1] if found else None

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
        total = self._epsilon([*events, spending.event], delta)
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
        path: ledger.jsonl, made by `create`.
        key: the site's key.
        compose: epsilon of a list of events at a delta.

    Raises:
        LedgerError: on opening, when the file cannot be trusted or another process holds it.
    """

    def __init__(self, path: Path, key: bytes, compose: Composer = epsilon) -> None:
        self._journal = Journal(path, key)
        try:
            self.entries = Entries(self._journal.lines, compose)
        except LedgerError:
            self._journal.close()
            raise

    @staticmethod
    def create(path: Path, key: bytes) -> None:
        """An empty ledger. Raises LedgerError when there is one."""
        create_journal(path, key)

    @staticmethod
    def read(path: Path, key: bytes, compose: Composer = epsilon) -> Entries:
        """The verified entries, without the lock. Raises LedgerError as opening does."""
        return Entries(read_journal(path, key), compose)

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

    def epsilon(self, cohort: str, delta: float, run: str | None = None) -> float:
        """Spent by a cohort (or by one run on it) so far, reservations included."""
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
