"""A site's answers: every fault is a Refusal, nothing leaves unaccounted, and messages tell nothing of the site."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedmed.errors import DataError, LedgerError, ModelError, WireError
from fedmed.messages import DescribeTask, Refusal, SiteInfo, TrainResult, TrainTask, decode, encode, sha256_hex
from fedmed.privacy.accounting import PrivacyEvent
from hospital_client.audit import Audit
from hospital_client.fakes import (
    EchoTrainer,
    example_cohort,
    example_policy,
    example_task,
    journal_files,
    linear_epsilon,
)
from hospital_client.kept import KeptStore
from hospital_client.ledger import Ledger
from hospital_client.policy import Policy
from hospital_client.release import TaskMismatch
from hospital_client.results import ResultStore
from hospital_client.site import Site

PAYLOAD = b"the adapter"


@dataclass
class Bench:
    """A site in a folder, restarted at will with another trainer, policy or data set."""

    root: Path
    policy: Policy
    patients: int = 57
    trainer: EchoTrainer = field(default_factory=EchoTrainer)
    open: list[Any] = field(default_factory=list)

    def start(self, **changes: Any) -> Site:
        for name, value in changes.items():
            setattr(self, name, value)
        self.stop()
        ledger, audit = Ledger(journal_files(self.root), linear_epsilon), Audit(self.root / "audit.jsonl")
        self.open = [ledger, audit]
        return Site(
            "north",
            self.policy,
            example_cohort(self.patients),
            ledger=ledger,
            audit=audit,
            results=ResultStore(self.root / "results"),
            trainer=self.trainer,
        )

    def stop(self) -> None:
        for item in self.open:
            item.close()
        self.open = []

    @property
    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    Ledger.create(journal_files(tmp_path))
    bench = Bench(tmp_path, example_policy())
    yield bench
    bench.stop()


def ask(site: Site, task: TrainTask | DescribeTask) -> Any:
    return decode(site.handle(encode(task, PAYLOAD if isinstance(task, TrainTask) else b"")))[0]


def test_a_task_is_trained_reserved_committed_stored_and_audited(bench: Bench) -> None:
    site = bench.start()
    frame = encode(example_task(), PAYLOAD)
    result, payload = decode(site.handle(frame))
    assert isinstance(result, TrainResult)
    assert bytes(payload) == PAYLOAD
    assert (result.task_sha256, result.num_patients, result.steps) == (sha256_hex(frame), 60, 10)
    assert (result.epsilon, result.epsilon_total, result.delta) == (1.0, 1.0, 1e-5)
    assert bench.trainer.lot_sizes == [pytest.approx(6.0)]  # of the released count, 60, not of the true one, 57
    assert [line["decision"] for line in bench.audit] == ["accepted", "released"]
    assert list(site.ledger.entries.committed) == [2]  # line 1 notes the members


def test_the_same_task_is_answered_again_and_not_trained_or_spent_again(bench: Bench) -> None:
    frame = encode(example_task(), PAYLOAD)
    first = bench.start().handle(frame)
    site = bench.start(trainer=EchoTrainer(fault=RuntimeError("must not train")))
    assert site.handle(frame) == first
    assert site.epsilon_spent() == pytest.approx(1.0)
    assert bench.audit[-1]["decision"] == "resent"


def test_a_result_stored_before_a_crash_is_sent_and_its_commit_finished(bench: Bench) -> None:
    site = bench.start()
    frame = encode(example_task(), PAYLOAD)
    first = site.handle(frame)
    bench.stop()
    # The state a kill leaves between storing the result and committing it: reserved, stored, not committed.
    files = journal_files(bench.root)
    for path in (files.path, files.witness):
        path.unlink()
    Ledger.create(files)
    site = bench.start()
    task = example_task()
    site._begin(site.cohort, site._cost_of_training(task, sha256_hex(frame)), "trains")
    assert site.handle(frame) == first
    assert site.ledger.entries.open_reservation(sha256_hex(frame)) is None
    assert site.epsilon_spent() == pytest.approx(1.0)


def test_a_damaged_stored_result_is_trained_anew_and_spent_anew(bench: Bench) -> None:
    site = bench.start()
    ask(site, example_task())
    (stored,) = (bench.root / "results").glob("*.frame")
    stored.write_bytes(stored.read_bytes()[:-1])
    assert ask(site, example_task()).epsilon_total == pytest.approx(2.0)


def test_only_the_last_results_are_kept(bench: Bench) -> None:
    site = bench.start()
    for number in range(1, 4):
        ask(site, example_task(round=number))
    site._results.save("0" * 64, b"x")
    site._results.save("1" * 64, b"x")
    assert len(list((bench.root / "results").iterdir())) == 4


def test_a_round_that_fails_keeps_nothing_and_one_that_is_sent_again_moves_nothing(bench: Bench) -> None:
    """What is kept follows the results that were given: rounds 1 and 3 here, of which the last two stay."""
    store = KeptStore(bench.root / "kept")

    def newest() -> bytes | None:
        path = store.before("run-1", 99)
        return path and path.read_bytes()

    for number, fault in ((1, None), (2, RuntimeError("killed")), (3, None)):
        site = bench.start(trainer=EchoTrainer(fault=fault, kept=b"own %d" % number))
        ask(site, example_task(round=number))
        assert newest() == (b"own 1" if number < 3 else b"own 3")
    site = bench.start(trainer=EchoTrainer(kept=b"never"))
    assert isinstance(ask(site, example_task(round=1)), TrainResult)
    assert newest() == b"own 3"
    assert sorted(path.name for path in (bench.root / "kept" / "run-1").iterdir()) == ["1.safetensors", "3.safetensors"]
    earlier = store.before("run-1", 3)
    assert earlier is not None and earlier.read_bytes() == b"own 1"
    assert store.before("run-1", 1) is None and store.before("run-2", 9) is None


def test_the_budget_is_refused_before_the_trainer_runs(bench: Bench) -> None:
    site = bench.start()
    answers = [ask(site, example_task(round=number)) for number in range(1, 5)]
    assert [type(answer) for answer in answers] == [TrainResult] * 3 + [Refusal]
    assert answers[3].code == "budget_exhausted"
    assert "above the site's budget" in answers[3].message
    assert "budget 3.5" in bench.audit[-1]["message"]  # the numbers stay here
    assert bench.trainer.rounds_trained == 3
    assert site.epsilon_spent() == pytest.approx(3.0)


def test_a_cap_is_charged_with_the_bound_that_the_policy_makes_public(bench: Bench) -> None:
    site = bench.start(policy=dataclasses.replace(bench.policy, epsilon_budget=8.0))
    assert isinstance(ask(site, example_task(max_patients=12)), TrainResult)
    (event,) = site.ledger.spent_events("north")
    assert event == PrivacyEvent(1.0, 0.1, 10, max_patients=12, num_patients=65)


def test_a_run_reports_its_own_epsilon_and_the_cohorts(bench: Bench) -> None:
    site = bench.start()
    ask(site, example_task(run="first"))
    result = ask(site, example_task(run="second"))
    assert (result.epsilon, result.epsilon_total) == (1.0, 2.0)


@pytest.mark.parametrize("fault", [KeyError("patient-0815"), ValueError("a report of patient-0815"), MemoryError()])
def test_a_fault_while_training_tells_nothing_and_stays_spent(
    bench: Bench, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    site = bench.start(trainer=EchoTrainer(fault=fault))
    refusal = ask(site, example_task())
    assert (refusal.code, refusal.retry) == ("failed", False)
    assert "log has the details" in refusal.message
    assert "patient-0815" not in refusal.message + caplog.text + (bench.root / "audit.jsonl").read_text()
    assert type(fault).__name__ in caplog.text
    assert "train_round" in caplog.text  # where it arose
    assert site.epsilon_spent() == pytest.approx(1.0)
    assert isinstance(ask(bench.start(trainer=EchoTrainer()), example_task(round=2)), TrainResult)


@pytest.mark.parametrize(
    ("fault", "code"),
    [(DataError("/srv/north/1.png"), "failed"), (ModelError("/srv/base"), "failed"), (LedgerError("/srv/l"), "ledger")],
)
def test_a_fault_that_a_record_may_cause_tells_nothing_not_even_its_kind(
    bench: Bench, fault: Exception, code: str
) -> None:
    refusal = ask(bench.start(trainer=EchoTrainer(fault=fault)), example_task())
    assert refusal.code == code
    assert "/srv" not in refusal.message
    assert bench.audit[-1]["code"] == fault.code  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", [TaskMismatch("base model has sha256 1234"), WireError("not safetensors")])
def test_a_task_that_does_not_fit_is_refused_in_words_and_spends_nothing(bench: Bench, fault: Exception) -> None:
    site = bench.start(trainer=EchoTrainer(prepare_fault=fault))
    refusal = ask(site, example_task())
    assert refusal.message == str(fault)
    assert site.epsilon_spent() == 0.0


def test_policy_is_asked_before_the_trainer(bench: Bench) -> None:
    site = bench.start()
    refusal = ask(site, example_task(method="krum"))
    assert (refusal.code, refusal.retry) == ("policy", False)
    assert bench.trainer.lot_sizes == []
    assert bench.audit[-1]["code"] == "policy"


def test_no_privacy_is_loud_infinite_and_closes_the_cohort_to_private_tasks(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    site = bench.start(policy=example_policy(allow_no_privacy=True))
    result = ask(site, example_task(mode="none", noise_multiplier=1.0))  # noise is not added in this mode: not counted
    assert (result.epsilon, result.epsilon_total) == (-1.0, -1.0)
    assert "WITHOUT PRIVACY" in caplog.text
    assert any("WITHOUT PRIVACY" in line["message"] for line in bench.audit)
    refusal = ask(site, example_task(round=2))
    assert refusal.code == "budget_exhausted"
    assert "infinite" in bench.audit[-1]["message"]
    assert isinstance(ask(site, example_task(round=3, mode="none")), TrainResult)
    assert ask(site, DescribeTask("run-1")).epsilon_spent == -1.0


def test_noise_from_a_seed_is_loud_and_counts_as_no_privacy(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(bench.start(), example_task(insecure_noise_seed=0)).code == "policy"
    site = bench.start(policy=example_policy(allow_insecure_noise=True))
    result = ask(site, example_task(insecure_noise_seed=0))
    assert (result.epsilon, result.epsilon_total) == (-1.0, -1.0)
    assert "WITHOUT PRIVACY" in caplog.text
    assert [line["code"] for line in bench.audit if line["decision"] == "accepted"] == ["no_privacy"]
    assert ask(site, example_task(round=2)).code == "budget_exhausted"  # the noise that counts comes too late


@pytest.mark.parametrize(
    "frame",
    [b"", b"FEDM", b"GET / HTTP/1.1\r\n\r\n", encode(Refusal("r", 1, "s", "c", "m", False)), b"FEDM\x00\x00\x00\x02{}"],
)
def test_frames_that_are_no_task_are_refused(bench: Bench, frame: bytes) -> None:
    refusal = decode(bench.start().handle(frame))[0]
    assert isinstance(refusal, Refusal)
    assert refusal.code == "wire"


def test_a_damaged_payload_is_refused_and_spends_nothing(bench: Bench) -> None:
    site = bench.start()
    frame = bytearray(encode(example_task(), PAYLOAD))
    frame[-1] ^= 1
    assert decode(site.handle(bytes(frame)))[0].code == "wire"  # type: ignore[union-attr]
    assert site.epsilon_spent() == 0.0


def test_describe_releases_what_the_policy_says(bench: Bench) -> None:
    info = ask(bench.start(), DescribeTask("run-1"))
    assert isinstance(info, SiteInfo)
    assert (info.site, info.num_patients, info.epsilon_spent, info.epsilon_budget) == ("north", 60, 0.0, 3.5)


def test_too_few_patients_refuse_to_describe_and_to_train(bench: Bench) -> None:
    site = bench.start(patients=19)
    assert [ask(site, task).code for task in (DescribeTask("run-1"), example_task())] == ["policy", "policy"]


def test_one_task_at_a_time_and_a_stopped_one_stays_spent(bench: Bench) -> None:
    site = bench.start(trainer=EchoTrainer(wait=True))
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask(site, example_task())))
    thread.start()
    assert bench.trainer.training.wait(10)
    busy = ask(site, example_task(round=2))
    assert (busy.code, busy.retry) == ("federation", True)
    assert isinstance(ask(site, DescribeTask("run-1")), SiteInfo)
    site.stop()
    thread.join(10)
    assert (answers[0].code, answers[0].retry) == ("federation", True)
    assert ask(site, example_task(round=3)).retry is True
    assert site.epsilon_spent() == pytest.approx(1.0)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_task_asked_for_again_while_it_is_trained_waits_for_that(bench: Bench, stopped: bool) -> None:
    """Its server died and another one sends the same bytes: one training, one reservation, and both get its result."""
    site = bench.start(trainer=EchoTrainer(wait=True))
    frame, answers = encode(example_task(), PAYLOAD), []
    first = threading.Thread(target=lambda: answers.append(site.handle(frame)))
    first.start()
    assert bench.trainer.training.wait(10)
    again = threading.Thread(target=lambda: answers.append(site.handle(frame)))
    again.start()
    again.join(0.2)
    assert again.is_alive()
    if stopped:
        site.stop()
    else:
        bench.trainer.release.set()
    for thread in (first, again):
        thread.join(10)
    assert bench.trainer.rounds_trained == 1 and site.epsilon_spent() == pytest.approx(1.0)
    messages = [decode(answer)[0] for answer in answers]
    if not stopped:
        assert answers[0] == answers[1] and bench.audit[-1]["decision"] == "resent"
    else:
        assert all(isinstance(message, Refusal) and message.retry for message in messages)


def test_a_torn_audit_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"decision": "acc')
    audit = Audit(path)
    audit.write("started", run="r" * 10_000)
    audit.close()
    last = json.loads(path.read_text().splitlines()[-1])
    assert last["decision"] == "started"
    assert len(last["run"]) == 500
