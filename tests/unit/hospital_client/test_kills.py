"""A site killed at each system call, and in the middle of each write, and with the power cut: it always comes back.

A child process runs a scenario; its n-th call of the functions that change a file is its last. Then this process opens
what is left: that must succeed without a person, and hold everything that the child was told was done.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers_kills import KILLED, KINDS, Killer, Tell, child, kill_everywhere

from fedmed.messages import TrainResult, decode, encode
from hospital_client.audit import Audit
from hospital_client.consent import RESTORE, WITHDRAW, read_consent, record, withdrawn
from hospital_client.fakes import (
    EchoTrainer,
    example_cohort,
    example_policy,
    example_task,
    journal_files,
    linear_epsilon,
)
from hospital_client.journal import Journal
from hospital_client.ledger import Ledger, Spending
from hospital_client.results import ResultStore
from hospital_client.site import Site
from hospital_client.witness import JournalFiles


def spending(round: int) -> Spending:
    return Spending("north", "run-1", round, f"{round:064x}", 1.0, 0.1, 10, 1e-5)


def test_ledger_killed_at_every_call_of_enrol_reserve_and_commit(tmp_path: Path) -> None:
    cohort = example_cohort(40)

    def run(folder: Path, tell: Tell) -> None:
        ledger = Ledger(journal_files(folder), linear_epsilon)
        ledger.enrol("north", cohort.members)
        for round in (1, 2):
            reservation = ledger.reserve(spending(round), budget=9.0, delta=1e-5, fingerprint="f")
            tell(f"reserved-{round}")
            ledger.commit(reservation, "r" * 64)
            tell(f"committed-{round}")
        ledger.close()

    def check(folder: Path, told: list[str]) -> None:
        files = journal_files(folder)
        beside = Ledger.read(files, linear_epsilon)
        ledger = Ledger(files, linear_epsilon)
        entries = ledger.entries
        assert entries.reservations == beside.reservations
        reserved, committed = (
            len([word for word in told if word.startswith(kind)]) for kind in ("reserved", "committed")
        )
        assert reserved <= len(entries.reservations) <= reserved + 1
        assert committed <= len(entries.committed) <= committed + 1
        assert ledger.epsilon("north", 1e-5) == len(entries.reservations) >= reserved
        ledger.reserve(spending(3), budget=9.0, delta=1e-5, fingerprint="f")  # it goes on
        ledger.close()
        assert files.path.read_bytes() == files.witness.read_bytes()

    calls = kill_everywhere(tmp_path, lambda folder: Ledger.create(journal_files(folder)), run, check)
    assert calls > 20


def test_opening_that_mends_is_killed_at_every_call_too(tmp_path: Path) -> None:
    """After a kill in the middle of a line, and one in the middle of the witness's: mending is killed, and done again."""

    def damaged(which: str) -> Callable[[Path], None]:
        def prepare(folder: Path) -> None:
            files = journal_files(folder)
            Ledger.create(files)
            ledger = Ledger(files, linear_epsilon)
            ledger.reserve(spending(1), budget=9.0, delta=1e-5, fingerprint="f")
            before = files.path.read_bytes()
            ledger.reserve(spending(2), budget=9.0, delta=1e-5, fingerprint="f")
            ledger.close()
            if which == "journal":
                files.path.write_bytes(files.path.read_bytes()[:-20])
                files.witness.write_bytes(before)
            else:
                files.witness.write_bytes(files.witness.read_bytes()[:-20])

        return prepare

    for which, expected in (("journal", 1), ("witness", 2)):

        def check(folder: Path, told: list[str], expected: int = expected) -> None:
            ledger = Ledger(journal_files(folder), linear_epsilon)
            assert len(ledger.entries.reservations) == expected
            ledger.close()

        (tmp_path / which).mkdir()
        kill_everywhere(
            tmp_path / which, damaged(which), lambda folder, tell: Journal(journal_files(folder)).close(), check
        )


@pytest.mark.parametrize("unsynced", ["journal", "witness"])
def test_killed_before_an_fsync_opened_again_and_then_the_power_cut(tmp_path: Path, unsynced: str) -> None:
    """What an earlier process wrote without fsync counts for the next one, so that one must put it on disk for good."""

    def prepare(folder: Path) -> dict[int, int]:
        files = journal_files(folder)
        Ledger.create(files)
        ledger = Ledger(files, linear_epsilon)
        before = files.path.stat().st_size
        ledger.reserve(spending(1), budget=9.0, delta=1e-5, fingerprint="f")
        ledger.close()
        if unsynced == "journal":
            files.witness.write_bytes(b"")
        return {(files.path if unsynced == "journal" else files.witness).stat().st_ino: before}

    def run(folder: Path, tell: Tell) -> None:
        ledger = Ledger(journal_files(folder), linear_epsilon)
        tell("opened")
        ledger.commit(ledger.entries.reservations[1], "r" * 64)
        tell("committed")

    def check(folder: Path, told: list[str]) -> None:
        ledger = Ledger(journal_files(folder), linear_epsilon)
        assert len(ledger.entries.reservations) >= told.count("opened")
        assert len(ledger.entries.committed) >= told.count("committed")
        ledger.close()

    kill_everywhere(tmp_path, prepare, run, check)


def test_consent_killed_at_every_call(tmp_path: Path) -> None:
    steps = [(WITHDRAW, b"1" * 8), (WITHDRAW, b"2" * 8), (RESTORE, b"1" * 8)]

    def files_of(folder: Path) -> JournalFiles:
        return journal_files(folder, "consent.jsonl")

    def run(folder: Path, tell: Tell) -> None:
        for kind, member in steps:
            record(files_of(folder), kind, frozenset([member]), lambda message: None)
            tell(kind)

    def check(folder: Path, told: list[str]) -> None:
        states = [withdrawn(read_consent(files_of(folder)))]
        Journal(files_of(folder)).close()
        states.append(withdrawn(read_consent(files_of(folder))))
        possible: list[frozenset[bytes]] = [frozenset()]
        for kind, member in steps:
            last = possible[-1]
            possible.append(last | {member} if kind == WITHDRAW else last - {member})
        assert states[0] == states[1]
        assert states[0] in possible[len(told) : len(told) + 2]

    def prepare(folder: Path) -> None:
        Ledger.create(files_of(folder))

    assert kill_everywhere(tmp_path, prepare, run, check) > 20


def test_a_site_killed_at_every_call_of_a_task_trains_nothing_unreserved_and_answers_again(tmp_path: Path) -> None:
    policy = example_policy(epsilon_budget=99.0)
    frame = encode(example_task(), b"the adapter")

    @contextmanager
    def site(folder: Path, trainer: EchoTrainer) -> Iterator[Site]:
        ledger, audit = Ledger(journal_files(folder), linear_epsilon), Audit(folder / "audit.jsonl")
        results = ResultStore(folder / "results")
        yield Site("north", policy, example_cohort(57), ledger=ledger, audit=audit, results=results, trainer=trainer)
        ledger.close()
        audit.close()

    def run(folder: Path, tell: Tell) -> None:
        class Trainer(EchoTrainer):
            def prepare(self, *arguments: object) -> Callable[[object], bytes]:  # type: ignore[override]
                train = super().prepare(*arguments)  # type: ignore[arg-type]
                return lambda stop: tell("trained") or train(stop)  # type: ignore[arg-type, func-returns-value]

        with site(folder, Trainer()) as own:
            assert isinstance(decode(own.handle(frame))[0], TrainResult)
            tell("left")

    def check(folder: Path, told: list[str]) -> None:
        with site(folder, EchoTrainer()) as own:
            entries = own.ledger.entries
            assert len(entries.reservations) >= told.count("trained")
            assert len(entries.committed) >= told.count("left")
            before = len(entries.reservations)
            answer = decode(own.handle(frame))[0]
            assert isinstance(answer, TrainResult)
            assert before <= len(entries.reservations) <= before + 1
            if "left" in told:
                assert len(entries.reservations) == before  # the stored result, again

    assert kill_everywhere(tmp_path, lambda folder: Ledger.create(journal_files(folder)), run, check) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_killer_kills(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    with child() as (pid, _, wait):
        if pid == 0:
            Killer(2 if kind == "before" else 1, kind, {})
            fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, b"123456")
        code, _ = wait()
    assert code == KILLED
    assert path.read_bytes() == {"before": b"", "torn": b"123", "power": b"12"}[kind]
