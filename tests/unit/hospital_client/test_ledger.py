"""The ledger: spent is spent, whatever happens to the process or the file."""

import dataclasses
import math
from pathlib import Path
from random import Random

import pytest

from fedmed.errors import BudgetExhausted, LedgerError
from fedmed.privacy.accounting import epsilon
from hospital_client.fakes import example_cohort, journal_files, linear_epsilon
from hospital_client.ledger import Ledger, Spending
from hospital_client.witness import JournalFiles


def spending(round: int = 1, noise: float = 1.0, cohort: str = "north", run: str = "run-1") -> Spending:
    return Spending(cohort, run, round, f"{round:064x}", noise, sample_rate=0.1, steps=10, delta=1e-5)


@pytest.fixture
def files(tmp_path: Path) -> JournalFiles:
    files = journal_files(tmp_path)
    Ledger.create(files)
    return files


def reserve(ledger: Ledger, item: Spending, budget: float = 100.0) -> None:
    ledger.reserve(item, budget=budget, delta=1e-5, fingerprint="f")


def opened(files: JournalFiles) -> Ledger:
    return Ledger(files, linear_epsilon)


def members(*numbers: int) -> frozenset[bytes]:
    return frozenset(bytes([number] * 8) for number in numbers)


def test_reserved_counts_as_spent_after_a_restart_committed_or_not(files: JournalFiles) -> None:
    ledger = opened(files)
    first = ledger.reserve(spending(1), budget=100.0, delta=1e-5, fingerprint="f")
    ledger.commit(first, "r" * 64)
    reserve(ledger, spending(2))
    ledger.close()
    again = opened(files)
    assert again.epsilon("north", 1e-5) == pytest.approx(2.0)
    assert again.entries.epsilon("north", 1e-5, committed_only=True) == pytest.approx(1.0)
    assert again.entries.open_reservation(f"{2:064x}") is not None
    assert again.entries.open_reservation(f"{1:064x}") is None


def test_budget_holds_over_runs_and_restarts_and_names_spent_asked_and_budget(files: JournalFiles) -> None:
    for number in range(1, 4):
        ledger = opened(files)
        reserve(ledger, spending(number, run=f"run-{number}"), budget=3.5)
        ledger.close()
    ledger = opened(files)
    with pytest.raises(BudgetExhausted, match=r"spent 3, asked 1 more, budget 3\.5"):
        reserve(ledger, spending(4), budget=3.5)
    assert ledger.epsilon("north", 1e-5) == pytest.approx(3.0)
    assert ledger.entries.runs("north") == ["run-1", "run-2", "run-3"]


def test_cohorts_of_other_patients_do_not_share_a_budget(files: JournalFiles) -> None:
    ledger = opened(files)
    ledger.enrol("north", members(1, 2))
    ledger.enrol("south", members(3))
    reserve(ledger, spending(1, cohort="north"), budget=1.5)
    reserve(ledger, spending(2, cohort="south"), budget=1.5)
    assert ledger.entries.cohorts == ["north", "south"]
    with pytest.raises(BudgetExhausted):
        reserve(ledger, spending(3, cohort="south"), budget=1.5)


def test_rounds_compose_by_the_accountant_not_by_addition(files: JournalFiles) -> None:
    ledger = Ledger(files)
    for number in range(1, 6):
        reserve(ledger, spending(number))
    events = ledger.spent_events("north")
    assert ledger.epsilon("north", 1e-5) == epsilon(events, 1e-5) < 5 * epsilon(events[:1], 1e-5)


def test_a_task_without_privacy_makes_epsilon_infinite_for_good(files: JournalFiles) -> None:
    ledger = opened(files)
    reserve(ledger, spending(1, noise=0.0))
    assert math.isinf(ledger.epsilon("north", 1e-5))
    with pytest.raises(BudgetExhausted, match="without privacy"):
        reserve(ledger, spending(2))
    reserve(ledger, spending(3, noise=0.0))
    ledger.enrol("north", members(1))
    ledger.enrol("south", members(2))
    reserve(ledger, spending(4, cohort="south"))


def test_the_line_is_on_disk_before_reserve_returns(files: JournalFiles) -> None:
    ledger = opened(files)
    reserve(ledger, spending(1))
    assert Ledger.read(files, linear_epsilon).epsilon("north", 1e-5) == pytest.approx(1.0)


def test_only_one_writer(files: JournalFiles) -> None:
    ledger = opened(files)
    with pytest.raises(LedgerError, match="another process"):
        opened(files)
    ledger.close()
    opened(files).close()


def test_an_entry_of_a_later_version_fails_closed(files: JournalFiles) -> None:
    ledger = opened(files)
    ledger._journal.append({"kind": "withdraw"})
    ledger.close()
    with pytest.raises(LedgerError, match="line 1 is not an entry that this version knows"):
        opened(files)
    with pytest.raises(LedgerError, match="not an entry"):  # the failed opening gave its lock back
        opened(files)


def test_an_entry_of_other_types_fails_closed(files: JournalFiles) -> None:
    for number, wrong in enumerate(
        [{"steps": "10"}, {"noise_multiplier": [1.0]}, {"delta": 10**400}, {"cohort": None}]
    ):
        again = dataclasses.replace(
            files, path=files.path.with_name(str(number)), witness=files.witness.with_name(str(number))
        )
        Ledger.create(again)
        ledger = opened(again)
        ledger._journal.append({"kind": "reserve", "fingerprint": "f", **dataclasses.asdict(spending()), **wrong})
        ledger.close()
        with pytest.raises(LedgerError, match="line 1 is not an entry that this version knows"):
            opened(again)


def test_a_renamed_cohort_gains_no_budget(files: JournalFiles) -> None:
    ledger = opened(files)
    ledger.enrol("north", members(1, 2, 3))
    reserve(ledger, spending(1), budget=1.5)
    ledger.enrol("north-2", members(1, 2, 3))
    assert ledger.epsilon("north-2", 1e-5) == pytest.approx(1.0)
    with pytest.raises(BudgetExhausted, match="spent 1, asked 1 more"):
        reserve(ledger, spending(2, cohort="north-2"), budget=1.5)


def test_patients_under_another_name_bring_along_what_they_lost_and_the_others_do_not(files: JournalFiles) -> None:
    ledger = opened(files)
    ledger.enrol("north", members(1, 2, 3, 4))
    reserve(ledger, spending(1))
    ledger.enrol("half", members(3, 4, 5))  # partly overlapping
    reserve(ledger, spending(2, cohort="half"))
    ledger.enrol("newcomers", members(5, 6))  # patient 5 was in `half`, nobody in `north`
    ledger.enrol("others", members(7))
    spent = {name: ledger.epsilon(name, 1e-5) for name in ("north", "half", "newcomers", "others")}
    assert spent == {"north": 2.0, "half": 2.0, "newcomers": 1.0, "others": 0.0}
    assert ledger.entries.sharing("half") == ["north"]
    assert ledger.entries.sharing("others") == []


def test_who_left_a_cohort_is_remembered_and_who_joined_goes_on_with_it(files: JournalFiles) -> None:
    ledger = opened(files)
    ledger.enrol("north", members(1, 2))
    reserve(ledger, spending(1))
    ledger.enrol("north", members(2, 3))  # 1 left, 3 joined
    assert ledger.epsilon("north", 1e-5) == pytest.approx(1.0)
    ledger.enrol("elsewhere", members(1))
    assert ledger.epsilon("elsewhere", 1e-5) == pytest.approx(1.0)
    ledger.close()
    assert opened(files).epsilon("elsewhere", 1e-5) == pytest.approx(1.0)


def test_no_patient_loses_more_than_the_budget_whatever_the_names(files: JournalFiles) -> None:
    """Random cohorts under few names, as an administrator might shuffle them; the truth is kept beside the ledger."""
    random = Random(0)
    ledger, lost = opened(files), dict.fromkeys(range(12), 0.0)
    for number in range(1, 80):
        name, present = random.choice("abcd"), random.sample(range(12), random.randint(1, 5))
        ledger.enrol(name, members(*present))
        try:
            reserve(ledger, spending(number, cohort=name), budget=4.0)
        except BudgetExhausted:
            continue
        for patient in present:
            lost[patient] += 1.0
    assert 2.0 < max(lost.values()) <= 4.0  # names are coarser than patients: it may stay below


def test_a_cohort_that_was_never_noted_fails_closed(files: JournalFiles) -> None:
    ledger = opened(files)
    ledger.enrol("north", members(1))
    reserve(ledger, spending(1, cohort="unknown"))
    assert ledger.epsilon("north", 1e-5) == pytest.approx(1.0)
    assert ledger.epsilon("unknown too", 1e-5) == pytest.approx(1.0)


def test_members_are_noted_once_and_anew_when_they_change(files: JournalFiles) -> None:
    cohort = example_cohort(5)
    for _ in range(2):
        ledger = opened(files)
        ledger.enrol(cohort.name, cohort.members)
        ledger.close()
    assert opened(files).entries.generation == 1


def test_evaluation_counts_cost_an_event_of_their_own(files: JournalFiles) -> None:
    item = dataclasses.replace(spending(1), metrics_noise_multiplier=5.0)
    assert [(event.noise_multiplier, event.steps) for event in item.events] == [(1.0, 10), (5.0, 1)]
    ledger = opened(files)
    reserve(ledger, item)
    ledger.close()
    assert opened(files).epsilon("north", 1e-5) == pytest.approx(10 * 0.1 + 0.1 / 5)
