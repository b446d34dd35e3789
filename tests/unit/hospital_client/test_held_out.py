"""Held-out patients at a site: a cohort of their own, reserved before they are read, refused unless the policy says so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedmed.data.manifest import load_manifest, write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.errors import DataError
from fedmed.messages import EvaluateResult, EvaluateTask, Refusal, decode, encode, sha256_hex
from fedmed.privacy.accounting import PrivacyEvent
from fedmed.privacy.patient_scores import NoisyScores
from hospital_client.audit import Audit
from hospital_client.checks import check_site
from hospital_client.cohort import Cohort
from hospital_client.fakes import (
    EchoTrainer,
    example_cohort,
    example_evaluation,
    example_policy,
    example_task,
    journal_files,
    linear_epsilon,
)
from hospital_client.held_out import HeldOut, cohort_name, load_held_out
from hospital_client.ledger import Ledger, Spending
from hospital_client.release import TaskMismatch
from hospital_client.results import ResultStore
from hospital_client.settings import SiteFolder
from hospital_client.setup import create_site
from hospital_client.site import Site

HELD_OUT = "north.held_out"
FOUND = NoisyScores((12.5, 3.25), (40.0, 8.0))


@dataclass
class Scorer:
    """Gives FOUND. Notes what the ledger held when the records would have been read."""

    ledger: Ledger | None = None
    fault: Exception | None = None
    mismatch: Exception | None = None
    seen: list[list[PrivacyEvent]] = field(default_factory=list)

    def prepare_evaluation(
        self, task: EvaluateTask, payload: memoryview
    ) -> Callable[[Callable[[], bool]], NoisyScores]:
        assert bytes(payload) == b"adapter"
        if self.mismatch is not None:
            raise self.mismatch

        def score(should_stop: Callable[[], bool]) -> NoisyScores:
            assert self.ledger is not None
            self.seen.append(self.ledger.spent_events(HELD_OUT))
            if self.fault is not None:
                raise self.fault
            return FOUND

        return score


def other_patients(count: int) -> Cohort:
    """A cohort that shares nobody with `example_cohort`."""
    members = frozenset((1000 + number).to_bytes(8) for number in range(count))
    return Cohort(HELD_OUT, members, "e" * 64)


class Bench:
    """A site of 40 patients and as many held out, opened again at will."""

    def __init__(self, root: Path) -> None:
        self.root, self.scorer, self._open = root, Scorer(), list[Any]()
        Ledger.create(journal_files(root))

    def start(self, held_out: int | None = 40, fault: Exception | None = None, **policy: Any) -> Site:
        self.stop()
        ledger, audit = Ledger(journal_files(self.root), linear_epsilon), Audit(self.root / "audit.jsonl")
        self._open = [ledger, audit]
        self.scorer = Scorer(ledger, fault)
        return Site(
            "north",
            example_policy(**{"allow_metrics": True, "epsilon_budget": 3.0, **policy}),
            example_cohort(40),
            ledger=ledger,
            audit=audit,
            results=ResultStore(self.root / "results"),
            trainer=EchoTrainer(),
            held_out=None if held_out is None else HeldOut(other_patients(held_out), self.scorer),
        )

    def stop(self) -> None:
        for item in self._open:
            item.close()
        self._open = []

    def decisions(self) -> list[str]:
        return [json.loads(line)["decision"] for line in (self.root / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.stop()


def ask(site: Site, task: EvaluateTask) -> Any:
    return decode(site.handle(encode(task, b"adapter")))[0]


def test_it_is_reserved_before_anybody_is_read_then_committed_and_told(bench: Bench) -> None:
    site, task = bench.start(), example_evaluation()
    result = ask(site, task)
    assert result == EvaluateResult(
        "run-1", 5, "north", sha256_hex(encode(task, b"adapter")), task.scores, FOUND.sums, FOUND.weights
    )
    assert bench.scorer.seen == [[PrivacyEvent(4.0, 1.0, 1)]]
    assert len(site.ledger.entries.committed) == 1
    assert bench.decisions() == ["accepted", "released"]
    assert site.ledger.epsilon(HELD_OUT, 1e-5) == pytest.approx(0.25)
    assert site.epsilon_spent() == 0.0  # whoever is trained on has lost nothing


def test_the_same_task_again_is_the_same_answer_and_spends_nothing(bench: Bench) -> None:
    first = ask(bench.start(), example_evaluation())
    site = bench.start(fault=RuntimeError("must not read"))
    assert ask(site, example_evaluation()) == first
    assert site.ledger.epsilon(HELD_OUT, 1e-5) == pytest.approx(0.25)
    assert bench.scorer.seen == []


def test_killed_between_storing_and_committing_it_is_committed_later(bench: Bench) -> None:
    frame = encode(example_evaluation(), b"adapter")
    first = bench.start().handle(frame)
    bench.stop()
    files = journal_files(bench.root)
    for path in (files.path, files.witness):
        path.unlink()
    Ledger.create(files)
    site = bench.start()
    task = example_evaluation()
    spending = Spending(HELD_OUT, task.run, task.round, sha256_hex(frame), 4.0, 1.0, 1, 1e-5)
    site.ledger.reserve(spending, budget=3.0, delta=1e-5, fingerprint="")
    assert site.handle(frame) == first
    assert site.ledger.entries.open_reservation(sha256_hex(frame)) is None
    assert site.ledger.epsilon(HELD_OUT, 1e-5) == pytest.approx(0.25)


def test_a_fault_leaves_what_was_reserved_spent(bench: Bench) -> None:
    site = bench.start(fault=KeyError("p0001"))
    answer = ask(site, example_evaluation())
    assert isinstance(answer, Refusal)
    assert answer.code == "failed" and "p0001" not in answer.message
    assert site.ledger.epsilon(HELD_OUT, 1e-5) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("policy", "change", "reason"),
    [
        ({"allow_metrics": False}, {}, "allow_metrics is false"),
        ({}, {"noise_multiplier": 1.9}, "privacy.noise_multiplier=1.9, expected at least 2"),
        ({}, {"mode": "none", "noise_multiplier": 0.0}, "allow_no_privacy is false"),
        ({"allow_no_privacy": True}, {"mode": "none"}, "expected 0 without mode dp"),
        ({}, {"mode": "both"}, "privacy.mode='both'"),
        ({}, {"delta": 1e-3}, "privacy.delta=0.001"),
        ({}, {"scores": ("loss",)}, "scores=['loss']"),
        ({}, {"scores": ()}, "scores=[]"),
        ({}, {"max_new_tokens": 10**6}, "max_new_tokens=1000000"),
        ({}, {"base_sha256": "ef" * 32}, "base_sha256="),
        ({}, {"personal": ("everything",)}, "personal="),
        ({}, {"dtype": "float8"}, "dtype='float8'"),
        ({}, {"run": "../x"}, "run: expected a name"),
        ({"held_out": 19}, {}, "fewer held-out patients than its policy's min_patients=20"),
        ({"held_out": None}, {}, "the site has no held-out patients"),
    ],
)
def test_it_is_refused_before_anything_is_read_or_spent(bench: Bench, policy: dict, change: dict, reason: str) -> None:
    site = bench.start(**policy)
    answer = ask(site, example_evaluation(**change))
    assert isinstance(answer, Refusal)
    assert (answer.code, reason in answer.message) == ("policy", True), answer.message
    assert site.ledger.entries.reservations == {} and bench.scorer.seen == []
    assert bench.decisions() == ["refused"]


def test_an_adapter_that_does_not_fit_costs_nothing(bench: Bench) -> None:
    site = bench.start()
    bench.scorer.mismatch = TaskMismatch("another base model")
    assert ask(site, example_evaluation()).code == "model"
    assert site.ledger.entries.reservations == {}


def test_the_budget_is_held_for_the_held_out_patients_alone(bench: Bench) -> None:
    site = bench.start(epsilon_budget=0.6)
    assert [type(ask(site, example_evaluation(round=number))).__name__ for number in (1, 2, 3)] == [
        "EvaluateResult",
        "EvaluateResult",
        "Refusal",
    ]
    assert site.epsilon_spent() == 0.0
    assert decode(site.handle(encode(example_task(steps=1), b"adapter")))[0].type == "train_result"


def test_what_a_held_out_patient_lost_in_training_before_counts(bench: Bench) -> None:
    site = bench.start(epsilon_budget=0.6)
    site.ledger.enrol("earlier", frozenset([(1000).to_bytes(8)]))
    site.ledger.reserve(
        Spending("earlier", "run-0", 1, "0" * 64, 1.0, 0.1, 4, 1e-5), budget=3.0, delta=1e-5, fingerprint=""
    )
    assert ask(site, example_evaluation()).code == "budget_exhausted"


def test_without_privacy_the_held_out_cohort_is_spent_for_good_and_the_other_is_not(bench: Bench) -> None:
    site = bench.start(allow_no_privacy=True)
    assert isinstance(ask(site, example_evaluation(mode="none", noise_multiplier=0.0)), EvaluateResult)
    assert math.isinf(site.ledger.epsilon(HELD_OUT, 1e-5)) and site.epsilon_spent() == 0.0
    assert ask(site, example_evaluation()).code == "budget_exhausted"


# Folders as a hospital has them.


def folder_of(root: Path, shared: int, **site: str) -> SiteFolder:
    """25 patients to train on and 21 held out, of whom `shared` are among the 25."""
    train = list(phantom_examples(25, 0, domain="hospital", split="train"))
    patients = sorted({example.patient for example in train})
    others = list(phantom_examples(21 - shared, 1, domain="hospital", split="test"))
    both = [example for example in train if example.patient in patients[:shared]]
    write_manifest(root / "train", train)
    write_manifest(root / "others", [*others, *both])
    settings = {"name": "north", "data": str(root / "train"), "held_out": str(root / "others"), "socket": "s.sock"}
    return create_site(root / "north", {**settings, **site}, {})


def test_a_manifest_that_shares_patients_is_refused_saying_how_many(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, shared=3)
    with pytest.raises(
        DataError, match=r"held_out: 3 of its 21 patients are in the training manifest too, expected none"
    ):
        load_held_out(folder, load_manifest(folder.data))
    (finding,) = (finding for finding in check_site(folder.root) if finding.thing == "held out")
    assert finding.error is not None and "3 of its 21" in finding.error.message


def test_one_of_others_is_checked_and_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, shared=0)
    manifest = load_held_out(folder, load_manifest(folder.data))
    assert manifest is not None and manifest.num_patients == 21
    (finding,) = (finding for finding in check_site(folder.root) if finding.thing == "held out")
    assert finding.error is None and finding.text.startswith("21 patients") and "flatter" not in finding.text
    held_out = HeldOut.of(folder, manifest, Scorer())
    assert held_out is not None and held_out.cohort.name == cohort_name(folder) == HELD_OUT


def test_check_tells_who_was_trained_on_before(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, shared=0)
    held_out = load_manifest(folder.root.parent / "others")
    ledger = Ledger(folder.ledger)
    ledger.enrol("earlier", frozenset(held_out.pseudonyms(folder.key)[:2]))
    ledger.reserve(Spending("earlier", "run-0", 1, "0" * 64, 1.0, 0.1, 4, 1e-5), budget=8.0, delta=1e-5, fingerprint="")
    ledger.close()
    (finding,) = (finding for finding in check_site(folder.root) if finding.thing == "held out")
    assert "some were in earlier before" in finding.text


def test_a_site_without_one_says_so(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, shared=0, held_out='""')
    assert load_held_out(folder, load_manifest(folder.data)) is None
    assert HeldOut.of(folder, None, Scorer()) is None
    (finding,) = (finding for finding in check_site(folder.root) if finding.thing == "held out")
    assert finding.text == "no patients are held out for evaluations"
