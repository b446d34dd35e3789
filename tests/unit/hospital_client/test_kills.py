"""A site killed at each system call, and in the middle of each write, and with the power cut: it always comes back.

A child process runs a scenario; its n-th call of the functions that change a file is its last. Then this process opens
what is left: that must succeed without a person, and hold everything that the child was told was done.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedmed.messages import TrainResult, decode, encode, sha256_hex
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
from hospital_client.kept import Kept, KeptStore
from hospital_client.ledger import Ledger, Spending
from hospital_client.results import ResultStore
from hospital_client.site import Site
from hospital_client.witness import JournalFiles

CALLS = ("open", "write", "fsync", "ftruncate", "replace", "mkdir", "unlink", "close")
# How a process ends, and at which calls: what the others leave behind is what one of these does.
KINDS = {"before": CALLS, "torn": ("write",), "power": ("write", "fsync", "ftruncate", "replace")}
KILLED = 9
Tell = Callable[[str], None]


@pytest.fixture(autouse=True)
def without_the_disks_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system outlives the process here, so fsync is only counted, and what it promises is kept by `Killer`."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class Killer:
    """Replaces the functions of `os`; the n-th call of those in KINDS is the process's last.

    before: the call is not made. torn: of a write the first half is made. power: the call is made; what was written to a
    file since its last fsync is lost, save for a part of it. `synced`: what is for good of each file that an earlier
    process left without fsync, by inode.
    """

    def __init__(self, number: int, kind: str, synced: dict[int, int]) -> None:
        self.left = number
        self.before = synced
        self.kind = kind
        self.real = {name: getattr(os, name) for name in CALLS}
        self.synced: dict[int, int] = {}
        for name in CALLS:
            setattr(os, name, self._wrapped(name))

    def _wrapped(self, name: str) -> Callable[..., object]:
        real = self.real[name]

        def call(*arguments: object, **options: object) -> object:
            self.left -= name in KINDS[self.kind]
            if self.left == 0:
                self._die(name, *arguments, **options)
            result = real(*arguments, **options)
            if name == "open":
                found = os.fstat(result)
                self.synced[result] = self.before.get(found.st_ino, found.st_size)
            if name == "fsync":
                self.synced[arguments[0]] = os.fstat(arguments[0]).st_size
            if name == "ftruncate":
                self.synced[arguments[0]] = min(self.synced[arguments[0]], arguments[1])
            return result

        return call

    def _die(self, name: str, *arguments: object, **options: object) -> None:
        if self.kind == "power":
            self.real[name](*arguments, **options)
        if self.kind == "torn":
            self.real[name](arguments[0], arguments[1][: len(arguments[1]) // 2])  # type: ignore[index]
        if self.kind == "power":
            self._lose()
        os._exit(KILLED)

    def _lose(self) -> None:
        for fd, size in self.synced.items():
            try:
                now = os.fstat(fd).st_size
                if now > size:
                    self.real["ftruncate"](fd, size + (now - size) // 3)
            except OSError:  # closed, or opened to read
                continue


@contextmanager
def child() -> Iterator[tuple[int, Tell, Callable[[], tuple[int, list[str]]]]]:
    """Forks. Yields 0 in the child and its `tell`; in the parent `wait`, which gives exit code and what was told."""
    reader, writer = os.pipe()
    pid = os.fork()
    real_write = os.write
    try:
        yield pid, lambda word: real_write(writer, f"{word}\n".encode()) and None, lambda: _wait(pid, reader, writer)
        if pid == 0:
            os._exit(0)
    except BaseException:
        if pid == 0:
            os._exit(1)
        raise


def _wait(pid: int, reader: int, writer: int) -> tuple[int, list[str]]:
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read().split()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def kill_everywhere(
    tmp_path: Path,
    prepare: Callable[[Path], dict[int, int] | None],
    run: Callable[[Path, Tell], None],
    check: Callable[[Path, list[str]], None],
) -> int:
    """Runs `run` in a fresh folder for every kind and number of call, then `check`. Returns how many calls there are.

    `prepare` fills the folder and may say what of its files is on disk for good, by inode; else all of it is.
    """
    calls = 0
    for kind in KINDS:
        for number in range(1, 1000):
            folder = tmp_path / f"{kind}-{number}"
            folder.mkdir()
            synced = prepare(folder) or {}
            with child() as (pid, tell, wait):
                if pid == 0:
                    Killer(number, kind, synced)
                    run(folder, tell)
                    os._exit(0)
                code, told = wait()
            assert code in (0, KILLED), (kind, number)
            check(folder, told)
            if code == 0:
                break
        assert number < 999
        calls = max(calls, number)
    return calls


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


def test_what_a_round_keeps_is_in_step_with_its_result_killed_at_every_call(tmp_path: Path) -> None:
    """The next round starts from this round's tensors exactly when this round's result can be handed over."""
    tasks = {number: encode(example_task(round=number), b"the adapter") for number in (1, 2)}
    hashes = {number: sha256_hex(frame) for number, frame in tasks.items()}

    def save(store: ResultStore, number: int) -> None:
        result = TrainResult("run-1", number, "north", hashes[number], 60, 10, 1.0, 1e-5, 1.0, "")
        store.save(hashes[number], encode(result, b"trained"), Kept("run-1", number, b"own tensors %d" % number))

    def prepare(folder: Path) -> None:
        save(ResultStore(folder / "results"), 1)

    def run(folder: Path, tell: Tell) -> None:
        save(ResultStore(folder / "results"), 2)
        tell("stored")

    def check(folder: Path, told: list[str]) -> None:
        store = ResultStore(folder / "results")
        newest = KeptStore(folder / "kept").before("run-1", 3)
        stored = store.load(hashes[2]) is not None
        assert stored or "stored" not in told
        assert newest is not None and newest.read_bytes() == b"own tensors %d" % (2 if stored else 1)
        assert {path.suffix for path in newest.parent.iterdir()} == {".safetensors"}
        assert newest.stat().st_mode & 0o777 == 0o600 and newest.parent.stat().st_mode & 0o777 == 0o700

    assert kill_everywhere(tmp_path, prepare, run, check) > 10


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
