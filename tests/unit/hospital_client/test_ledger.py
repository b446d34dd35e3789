"""The ledger: spent is spent, whatever happens to the process or the file."""

import json
import math
import os
from pathlib import Path

import pytest

from fedmed.errors import BudgetExhausted, LedgerError
from fedmed.privacy.accounting import epsilon
from hospital_client.fakes import linear_epsilon
from hospital_client.ledger import Ledger, Spending

KEY = b"k" * 32


def spending(round: int = 1, noise: float = 1.0, cohort: str = "north", run: str = "run-1") -> Spending:
    return Spending(cohort, run, round, f"{round:064x}", noise, sample_rate=0.1, steps=10, delta=1e-5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ledger = tmp_path / "ledger.jsonl"
    Ledger.create(ledger, KEY)
    return ledger


def reserve(ledger: Ledger, item: Spending, budget: float = 100.0) -> None:
    ledger.reserve(item, budget=budget, delta=1e-5, fingerprint="f")


def opened(path: Path) -> Ledger:
    return Ledger(path, KEY, linear_epsilon)


def test_reserved_counts_as_spent_after_a_restart_committed_or_not(path: Path) -> None:
    ledger = opened(path)
    first = ledger.reserve(spending(1), budget=100.0, delta=1e-5, fingerprint="f")
    ledger.commit(first, "r" * 64)
    reserve(ledger, spending(2))
    ledger.close()
    again = opened(path)
    assert again.epsilon("north", 1e-5) == pytest.approx(2.0)
    assert again.entries.epsilon("north", 1e-5, committed_only=True) == pytest.approx(1.0)
    assert again.entries.open_reservation(f"{2:064x}") is not None
    assert again.entries.open_reservation(f"{1:064x}") is None


def test_budget_holds_over_runs_and_restarts_and_names_spent_asked_and_budget(path: Path) -> None:
    for number in range(1, 4):
        ledger = opened(path)
        reserve(ledger, spending(number, run=f"run-{number}"), budget=3.5)
        ledger.close()
    ledger = opened(path)
    with pytest.raises(BudgetExhausted, match=r"spent 3, asked 1 more, budget 3\.5"):
        reserve(ledger, spending(4), budget=3.5)
    assert ledger.epsilon("north", 1e-5) == pytest.approx(3.0)
    assert ledger.entries.runs("north") == ["run-1", "run-2", "run-3"]


def test_cohorts_do_not_share_a_budget(path: Path) -> None:
    ledger = opened(path)
    reserve(ledger, spending(1, cohort="north"), budget=1.5)
    reserve(ledger, spending(2, cohort="south"), budget=1.5)
    assert ledger.entries.cohorts == ["north", "south"]
    with pytest.raises(BudgetExhausted):
        reserve(ledger, spending(3, cohort="south"), budget=1.5)


def test_rounds_compose_by_the_accountant_not_by_addition(path: Path) -> None:
    ledger = Ledger(path, KEY)
    for number in range(1, 6):
        reserve(ledger, spending(number))
    events = ledger.spent_events("north")
    assert ledger.epsilon("north", 1e-5) == epsilon(events, 1e-5) < 5 * epsilon(events[:1], 1e-5)


def test_a_task_without_privacy_makes_epsilon_infinite_for_good(path: Path) -> None:
    ledger = opened(path)
    reserve(ledger, spending(1, noise=0.0))
    assert math.isinf(ledger.epsilon("north", 1e-5))
    with pytest.raises(BudgetExhausted, match="without privacy"):
        reserve(ledger, spending(2))
    reserve(ledger, spending(3, noise=0.0))
    reserve(ledger, spending(4, cohort="south"))


def test_the_line_is_on_disk_before_reserve_returns(path: Path) -> None:
    ledger = opened(path)
    reserve(ledger, spending(1))
    assert Ledger.read(path, KEY, linear_epsilon).epsilon("north", 1e-5) == pytest.approx(1.0)


def test_only_one_writer(path: Path) -> None:
    ledger = opened(path)
    with pytest.raises(LedgerError, match="another daemon"):
        opened(path)
    ledger.close()
    opened(path).close()


def test_killed_at_any_byte_of_a_line_fails_closed_and_the_hint_mends_it(path: Path) -> None:
    ledger = opened(path)
    reserve(ledger, spending(1))
    before, head_before = path.read_bytes(), path.with_suffix(".head").read_bytes()
    reserve(ledger, spending(2))
    ledger.close()
    whole = path.read_bytes()
    path.with_suffix(".head").write_bytes(head_before)
    for size in range(len(before) + 1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(LedgerError, match="line 2 is cut off") as caught:
            opened(path)
        assert "remove line 2" in caught.value.hint
    path.write_bytes(before)  # what the hint says
    mended = opened(path)
    assert mended.epsilon("north", 1e-5) == pytest.approx(1.0)


def test_killed_between_line_and_head_counts_the_line(path: Path) -> None:
    ledger = opened(path)
    head_before = path.with_suffix(".head").read_bytes()
    reserve(ledger, spending(1))
    ledger.close()
    path.with_suffix(".head").write_bytes(head_before)
    path.with_name("ledger.head.part").write_bytes(b'{"seq')  # what a kill while replacing the head leaves
    again = opened(path)
    assert again.epsilon("north", 1e-5) == pytest.approx(1.0)
    assert json.loads(path.with_suffix(".head").read_text())["sequence"] == 1


def test_lines_cut_off_at_the_end_are_missed(path: Path) -> None:
    ledger = opened(path)
    for number in range(1, 4):
        reserve(ledger, spending(number))
    ledger.close()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(LedgerError, match="lines are missing at the end"):
        opened(path)


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_changed_line_is_named(path: Path, line: int) -> None:
    ledger = opened(path)
    for number in range(1, 4):
        reserve(ledger, spending(number))
    ledger.close()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"steps":10', b'"steps":1')
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match=f"line {line + 1} was changed"):
        opened(path)


def test_dropped_swapped_and_garbage_lines_are_noticed(path: Path) -> None:
    ledger = opened(path)
    for number in range(1, 4):
        reserve(ledger, spending(number))
    ledger.close()
    a, b, c = path.read_bytes().splitlines(keepends=True)
    for lines in ([b, c], [a, c], [b, a, c], [a, b, b"[]\n"], [a, b"\n", b, c], [a, b'{"hash": 3}\n', c]):
        path.write_bytes(b"".join(lines))
        with pytest.raises(LedgerError):
            opened(path)


def test_another_key_and_missing_files_fail_closed(path: Path) -> None:
    ledger = opened(path)
    reserve(ledger, spending(1))
    ledger.close()
    with pytest.raises(LedgerError):
        Ledger(path, b"x" * 32, linear_epsilon)
    head = path.with_suffix(".head").read_bytes()
    path.with_suffix(".head").unlink()
    with pytest.raises(LedgerError, match="cannot be read"):
        opened(path)
    path.with_suffix(".head").write_bytes(head)
    path.unlink()
    with pytest.raises(LedgerError, match="cannot be opened"):
        opened(path)
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(path, KEY)


def test_an_entry_of_a_later_version_fails_closed(path: Path) -> None:
    ledger = opened(path)
    ledger._journal.append({"kind": "withdraw"})
    ledger.close()
    with pytest.raises(LedgerError, match="line 1 is not an entry that this version knows"):
        opened(path)
    with pytest.raises(LedgerError, match="not an entry"):  # the failed opening gave its lock back
        opened(path)


def test_files_are_private(path: Path) -> None:
    assert [os.stat(item).st_mode & 0o777 for item in (path, path.with_suffix(".head"))] == [0o600, 0o600]
