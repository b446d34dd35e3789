"""The evaluation after the last round: what counts, what is told, and that it is asked once and committed whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from aggregator.rounds.evaluation import (
    EVALUATION_FILE,
    EvaluationRecord,
    evaluation_due,
    read_evaluation,
    told_scores,
)
from aggregator.rounds.exchange import LocalExchange
from aggregator.rounds.store import RoundStore
from aggregator.rounds.strategy import run_federation
from aggregator.rounds.tasks import plan_privacy
from aggregator.watching.events import EventLog, read_events
from fedmed.config import Experiment, load_experiment
from fedmed.errors import ConfigError
from fedmed.held_out_plan import plan_evaluation, release_cost
from fedmed.messages import EvaluateResult, EvaluateTask, Refusal, decode, encode, sha256_hex
from fedmed.metrics.scores import Scores
from fedmed.privacy.accounting import PrivacyEvent, epsilon
from fedmed.wire.fake_site import FakeSite

SETTINGS = [
    "privacy.noise_multiplier=1.0",
    "training.rounds=1",
    "federation.join_timeout_s=0.5",
    "partition.sites=[north,valley,harbour]",
    "evaluation.federated=true",
    "evaluation.noise_multiplier=4.0",
    "evaluation.scores=[exact_match]",
]


class Consortium:
    """Three fake sites; `changes` replaces fields of a site's evaluation, a Refusal stands for one that refuses."""

    def __init__(self, folder: Path, *overrides: str, changes: dict[str, Any] | None = None) -> None:
        self.experiment: Experiment = load_experiment("demo", [*SETTINGS, *overrides])
        self.store, self.events = RoundStore(folder / "rounds"), folder / "events.jsonl"
        self.sites = [
            FakeSite("north", 800, accuracy=0.9),
            FakeSite("valley", 500, accuracy=0.4),
            FakeSite("harbour", 10),
        ]
        self.changes = changes or {}
        self.asked: list[str] = []

    def run(self, *without: str) -> EvaluationRecord:
        exchange = LocalExchange({site.name: self._answers(site) for site in self.sites if site.name not in without})
        run_federation(
            self.experiment,
            exchange,
            self.store,
            lambda state: Scores(10, 0.5, None, None, 0.5, 0.5),
            EventLog(self.events),
            {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.zeros(4, 2)},
            "b" * 64,
        )
        record = read_evaluation(self.store.folder, self.store.last())
        assert record is not None
        return record

    def _answers(self, site: FakeSite) -> Any:
        def answer(frame: bytes) -> bytes:
            reply, task = site.handle(frame), decode(frame)[0]
            if not isinstance(task, EvaluateTask):
                return reply
            self.asked.append(sha256_hex(frame))
            change = self.changes.get(site.name, {})
            if isinstance(change, Refusal):
                return encode(change)
            message = decode(reply)[0]
            assert isinstance(message, EvaluateResult)
            return encode(dataclasses.replace(message, **change))

        return answer


def test_the_mean_every_site_and_the_worst_are_told(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    record = consortium.run()
    (score,) = told_scores(record)
    assert score.all.value == pytest.approx((800 * 0.9 + 500 * 0.4 + 10 * 0.75) / 1310)
    deviation = 4 * 0.5**0.5
    assert score.sites["north"].error == pytest.approx(deviation * (1 + 0.8**2) ** 0.5 / 800)
    assert score.worst == "valley" and score.sites["valley"].value == pytest.approx(0.4)
    assert score.sites["harbour"].value is None  # 10 patients among noise of 5.7
    (event,) = (event for event in read_events(consortium.events) if event["kind"] == "evaluated")
    assert event["scores"]["exact_match"]["worst_site"] == "valley" and event["replies"] == 3


def test_it_is_asked_once_and_of_the_last_adapter(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    record = consortium.run()
    last = consortium.store.last()
    assert last is not None and (record.round, record.adapter_sha256) == (1, last.adapter_sha256)
    assert not evaluation_due(consortium.experiment, consortium.store)
    consortium.run()
    assert len(consortium.asked) == 3
    assert EvaluationRecord.from_dict(record.to_dict()) == record


def test_cut_off_before_the_commit_it_is_asked_again_with_the_same_bytes(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    first = consortium.run()
    path = consortium.store.folder / EVALUATION_FILE
    for broken in (None, b"{", b"{}", path.read_bytes().replace(first.adapter_sha256.encode(), b"0" * 64)):
        path.unlink() if broken is None else path.write_bytes(broken)
        assert evaluation_due(consortium.experiment, consortium.store)
        again = consortium.run()
        assert dataclasses.replace(again, seconds=first.seconds) == first
    assert len(consortium.asked) == 15 and len(set(consortium.asked)) == 1
    assert [site.tasks for site in consortium.sites] == [[1], [1], [1]]  # no round was trained again


def test_without_asking_nobody_is_asked(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, "evaluation.federated=false")
    with pytest.raises(AssertionError):
        consortium.run()
    assert consortium.asked == [] and not evaluation_due(consortium.experiment, consortium.store)


def test_who_does_not_answer_is_named_and_the_others_count(tmp_path: Path) -> None:
    refusal = Refusal("r", 1, "north", "policy", "the site has no held-out patients", False)
    consortium = Consortium(tmp_path, changes={"north": refusal})
    record = consortium.run("harbour")
    assert [reply.site for reply in record.replies] == ["valley"]
    assert "refused (policy): the site has no held-out patients" in record.left_out["north"]
    assert "not connected" in record.left_out["harbour"]


def test_nobody_answers_and_the_run_ends_all_the_same(tmp_path: Path) -> None:
    refusal = Refusal("r", 1, "x", "policy", "no", False)
    consortium = Consortium(tmp_path, changes=dict.fromkeys(("north", "valley", "harbour"), refusal))
    (score,) = told_scores(consortium.run())
    assert (score.all.value, score.worst, score.sites) == (None, "", {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scores": ("open_f1",)}, "answered scores ['open_f1']"),
        ({"noisy_sums": (1e6,)}, "exact_match: sum 1e+06 of weight 800"),
        ({"noisy_sums": (1e8,), "noisy_weights": (1e8,)}, "at most 10000000"),
        ({"noisy_weights": (-1e3,)}, "weight -1000"),
        ({"noisy_sums": (1.0, 1.0)}, "2 sums and 1 weights"),
        ({"noisy_weights": ()}, "1 sums and 0 weights"),
        ({"task_sha256": "0" * 64}, "answered task '000000000000'"),
        ({"site": "valley"}, "answered for run, round, site"),
        ({"round": 0}, "answered for run, round, site"),
    ],
)
def test_what_no_honest_site_answers_leaves_it_out(tmp_path: Path, change: dict, reason: str) -> None:
    record = Consortium(tmp_path, changes={"north": change}).run()
    assert reason in record.left_out["north"]
    assert [reply.site for reply in record.replies] == ["harbour", "valley"]


def test_nan_does_not_even_travel(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    real = consortium._answers

    def hostile(site: FakeSite) -> Any:
        def answer(frame: bytes) -> bytes:
            reply = real(site)(frame)
            return (
                reply.replace(b"[720.0]", b"[1e999]").replace(b"[800.0]", b"[  NaN]") if site.name == "north" else reply
            )

        return answer

    consortium._answers = hostile  # type: ignore[method-assign]
    assert set(consortium.run().left_out) == {"north"}


def test_the_noise_is_planned_for_the_held_out_patients_alone() -> None:
    plain = load_experiment("demo", ["evaluation.epsilon=0.8"])
    spec = plan_evaluation(plain)
    cost = epsilon([PrivacyEvent(spec.noise_multiplier, 1.0, 1)], plain.privacy.delta)
    assert 0.78 < cost <= 0.8 and release_cost(spec) == cost
    asking = load_experiment("demo", ["evaluation.epsilon=0.8", "evaluation.federated=true"])
    assert plan_privacy(plain) == plan_privacy(asking)  # the training's plan does not change
    assert release_cost(plan_evaluation(load_experiment("demo", ["privacy.mode=none"]))) is None


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["evaluation.scores=[exact_match,exact_match]"], "evaluation.scores="),
        (["evaluation.scores=[loss]"], "evaluation.scores"),
        (
            ["evaluation.federated=true", "evaluation.noise_multiplier=2", "privacy.mode=none"],
            "evaluation.noise_multiplier=2",
        ),
        (["partition.held_out=1.0"], "partition.held_out"),
    ],
)
def test_wrong_settings_are_named(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_experiment("demo", overrides)
