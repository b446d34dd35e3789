"""Stages of a run: where a round stands, what it asks for, what is kept, and that a run goes on where it was cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from aggregator.methods import check_federation
from aggregator.rounds.exchange import LocalExchange
from aggregator.rounds.stages import Verdict, judge, next_place
from aggregator.rounds.store import RoundRecord, RoundStore
from aggregator.rounds.strategy import run_federation
from aggregator.rounds.tasks import plan_privacy
from aggregator.watching.events import EventLog, read_events
from aggregator.watching.progress import plain_line
from fedmed.config import Experiment, load_experiment
from fedmed.errors import ConfigError, FederationError
from fedmed.messages import TrainTask, decode
from fedmed.metrics.scores import Scores
from fedmed.wire.fake_site import FakeSite

LAYER = "multi_modal_projector.m"
FIXED = [
    "federation.method=fedavg",
    "partition.sites=[north,valley]",
    "privacy.noise_multiplier=1.0",
    "training.learning_rate=10",
    "federation.norm_bound=100",
    "federation.join_timeout_s=0.3",
]
STAGES: dict[str, Any] = {
    "align": {
        "training": {"rounds": 2, "local_steps": 3, "learning_rate": 4.0},
        "curriculum": {"parts": ["projector"], "tasks": ["caption"]},
    },
    "task": {"training": {"rounds": 3}, "curriculum": {"start_difficulty": 1}},
}


def settings(tmp_path: Path, stages: dict[str, Any], *overrides: str) -> Experiment:
    path = tmp_path / "staged.yaml"
    OmegaConf.save({"name": "staged", "stages": stages}, path)
    return load_experiment(str(path), [*FIXED, *overrides])


def scores(value: float) -> Scores:
    return Scores(10, value, None, None, value, 0.5)


class Run:
    """Two fake sites that move by whole numbers; validation scores come from a list, one an adapter that is trained."""

    def __init__(self, folder: Path, experiment: Experiment, validation: Sequence[float] = ()) -> None:
        self.experiment, self.folder = experiment, folder
        self.store = RoundStore(folder / "rounds")
        self.validation = list(validation)
        self.tasks: list[TrainTask] = []
        self.fakes = {name: FakeSite(name, 100, shift=1.0) for name in ("north", "valley")}

    def answer(self, name: str, frame: bytes) -> bytes:
        message = decode(frame)[0]
        if isinstance(message, TrainTask) and name == "north":
            self.tasks.append(message)
        return self.fakes[name].handle(frame)

    def go(self) -> list[RoundRecord]:
        exchange = LocalExchange(
            {name: lambda frame, name=name: self.answer(name, frame) for name in self.fakes}  # type: ignore[misc]
        )
        start = {f"{LAYER}.lora_A.weight": torch.ones(2, 3), f"{LAYER}.lora_B.weight": torch.zeros(4, 2)}
        run_federation(
            self.experiment,
            exchange,
            self.store,
            lambda state: scores(0.5),
            EventLog(self.folder / "events.jsonl"),
            start,
            "b" * 64,
            validate=(lambda state: scores(self.validation.pop(0))) if self.validation else None,
        )
        return self.store.records()

    def moved(self, number: int) -> float:
        """The mean of B after a round: a round of training adds 1."""
        return self.store.state(number)[f"{LAYER}.lora_B.weight"].mean().item()


def test_every_round_asks_for_what_its_stage_says(tmp_path: Path) -> None:
    experiment = settings(tmp_path, STAGES)
    run = Run(tmp_path / "run", experiment)
    records = run.go()
    assert experiment.rounds == 5
    assert [(record.stage, record.ends_stage) for record in records] == [
        ("", False),
        ("align", False),
        ("align", True),
        ("task", False),
        ("task", False),
        ("task", True),
    ]
    assert [task.privacy.steps for task in run.tasks] == [3, 3, 10, 10, 10]
    assert [task.optimizer.learning_rate for task in run.tasks] == [4.0, 4.0, 10.0, 10.0, 10.0]
    assert [task.parts for task in run.tasks] == [("projector",)] * 2 + [()] * 3
    assert [task.selection.tasks for task in run.tasks] == [("caption",)] * 2 + [()] * 3
    assert [task.selection.max_difficulty for task in run.tasks] == [5, 5, 1, 3, 5]
    assert {(task.rounds, task.run) for task in run.tasks} == {(5, run.tasks[0].run)}
    started = [event for event in read_events(run.folder / "events.jsonl") if event["kind"] == "round_started"]
    assert plain_line(started[0]) == "round 1 of 5 (align): training at north, valley"


def test_updates_are_bounded_by_those_of_their_own_stage(tmp_path: Path) -> None:
    """A stage that trains more, or faster, than the one before moves farther, and no site of it lies."""
    run = Run(tmp_path / "run", settings(tmp_path, STAGES, "federation.norm_bound=4"))
    for fake in run.fakes.values():
        fake.shift = 0.1
    answer = run.answer

    def faster(name: str, frame: bytes) -> bytes:
        message = decode(frame)[0]
        if isinstance(message, TrainTask):
            run.fakes[name].shift = {3: 10.0, 5: 1000.0}.get(message.round, run.fakes[name].shift)
        return answer(name, frame)

    run.answer = faster  # type: ignore[method-assign]
    run.go()
    bounded = [event for event in read_events(run.folder / "events.jsonl") if event["kind"] == "bounded"]
    assert [event["round"] for event in bounded] == [5, 5]


def test_one_epsilon_pays_for_all_stages(tmp_path: Path) -> None:
    planned = ["privacy.noise_multiplier=0.0"]
    staged = settings(tmp_path, STAGES, *planned)
    assert staged.steps == 2 * 3 + 3 * 10
    together = load_experiment("demo", [*FIXED, *planned, "training.rounds=36", "training.local_steps=1"])
    same = replace(together, privacy=staged.privacy)
    assert plan_privacy(staged).noise_multiplier == plan_privacy(same).noise_multiplier


def test_a_run_goes_on_in_the_middle_of_a_stage(tmp_path: Path) -> None:
    experiment = settings(tmp_path, STAGES)
    whole = Run(tmp_path / "whole", experiment)
    whole.go()
    cut = Run(tmp_path / "cut", experiment)
    cut.go()
    for number in (4, 5):
        for path in (cut.folder / "rounds" / f"{number:03d}").iterdir():
            path.unlink()
        (cut.folder / "rounds" / f"{number:03d}").rmdir()
    again = Run(tmp_path / "cut", experiment)
    records = again.go()
    assert [task.round for task in again.tasks] == [4, 5]
    assert [task.selection.max_difficulty for task in again.tasks] == [3, 5]
    assert [record.stage for record in records] == [record.stage for record in whole.store.records()]
    assert again.moved(5) == whole.moved(5)


def test_a_stage_that_gains_too_little_is_undone(tmp_path: Path) -> None:
    stages = {**STAGES, "align": {**STAGES["align"], "curriculum": {"min_gain": 0.05}}}
    run = Run(tmp_path / "run", settings(tmp_path, stages), validation=[0.5, 0.7, 0.54, 0.6, 0.6, 0.6])
    records = run.go()
    assert records[2].verdict == "validation accuracy gained +0.0400, expected +0.05: back to round 0"
    assert [run.moved(number) for number in range(6)] == [0, 1, 0, 1, 2, 3]
    assert records[2].val_scores == scores(0.5)
    assert records[2].adapter_sha256 == records[0].adapter_sha256
    (judged,) = [event for event in read_events(run.folder / "events.jsonl") if event["kind"] == "judged"]
    assert plain_line(judged).startswith("round 2: stage align ends: validation accuracy gained")


def test_patience_ends_a_stage_at_its_best_round(tmp_path: Path) -> None:
    stages = {
        "long": {"training": {"rounds": 9}, "curriculum": {"patience": 2, "min_gain": 0.0}},
        "short": {"training": {"rounds": 1}},
    }
    run = Run(tmp_path / "run", settings(tmp_path, stages), validation=[0.5, 0.6, 0.8, 0.7, 0.8, 0.9])
    records = run.go()
    assert [record.stage for record in records[1:]] == ["long"] * 4 + ["short"]
    assert records[4].verdict == "validation accuracy was best in round 2: back to it"
    assert [run.moved(number) for number in range(6)] == [0, 1, 2, 3, 2, 3]
    assert len(run.tasks) == 5  # the five rounds that were left out asked nobody for anything


def test_without_stages_patience_holds_for_the_run(tmp_path: Path) -> None:
    experiment = load_experiment("demo", [*FIXED, "training.rounds=6", "curriculum.patience=1"])
    run = Run(tmp_path / "run", experiment, validation=[0.5, 0.6, 0.55])
    records = run.go()
    assert [record.ends_stage for record in records] == [False, False, True]
    assert run.moved(2) == 1
    assert Run(tmp_path / "run", experiment, validation=[0.0]).go() == records  # resumed: it is over


def test_a_round_that_was_skipped_uses_up_no_patience(tmp_path: Path) -> None:
    """Hospitals that are away for a night must not end a stage that has trained nothing meanwhile."""
    away = ["training.rounds=5", "curriculum.patience=2", "federation.deadline_s=0.1"]
    experiment = load_experiment("demo", [*FIXED, *away])
    run = Run(tmp_path / "run", experiment, validation=[0.5, 0.6, 0.55, 0.55])
    answer = run.answer

    def absent(name: str, frame: bytes) -> bytes:
        message = decode(frame)[0]
        if isinstance(message, TrainTask) and message.round in (2, 3):
            raise FederationError("away")
        return answer(name, frame)

    run.answer = absent  # type: ignore[method-assign]
    records = run.go()
    assert [record.skipped for record in records] == [False, False, True, True, False, False]
    assert records[-1].verdict == "validation accuracy was best in round 1: back to it"


def test_a_stage_cannot_be_judged_without_a_validation_split(tmp_path: Path) -> None:
    experiment = load_experiment("demo", [*FIXED, "curriculum.patience=1"])
    with pytest.raises(FederationError, match="judged by a validation split, and there is none"):
        Run(tmp_path / "run", experiment).go()
    assert not (tmp_path / "run" / "rounds").exists()


def test_a_stage_that_trains_no_tensor_is_told_before_anyone_is_asked(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", settings(tmp_path, {"align": {"curriculum": {"parts": ["vision_tower"]}}}))
    with pytest.raises(
        FederationError, match=r"align: curriculum\.parts=\['vision_tower'\]: the adapter has no tensor"
    ) as told:
        run.go()
    assert "some in ['projector']" in told.value.message
    assert not run.tasks and not (run.folder / "rounds").exists()


def test_a_metric_that_has_no_item_counts_as_nothing(tmp_path: Path) -> None:
    experiment = load_experiment("demo", [*FIXED, "training.rounds=3", "curriculum.patience=1"])
    place = next_place(experiment.plan, [_record(0), _record(1)])
    assert place is not None
    assert judge(place, {0: None, 1: 0.1, 2: None}) == Verdict(
        True, 1, "validation accuracy was best in round 1: back to it"
    )
    assert judge(place, {0: None, 1: 0.1, 2: 0.2}) == Verdict(False)


@pytest.mark.parametrize(
    ("stages", "overrides", "expected"),
    [
        ({"a b": {}}, [], r"stages: \['a b'\]: expected letters"),
        ({"a": {"lora": {"rank": 1}}}, [], r"stages\.a\.lora: unknown key"),
        ({"a": {"training": {"rounds": 0}}}, [], r"stages\.a\.training\.rounds=0: expected >= 1"),
        ({"a": {"training": 3}}, [], r"stages\.a\.training=3: expected a group of keys"),
        ({"a": {"curriculum": {"parts": ["heart"]}}}, [], r"stages\.a\.curriculum\.parts='heart': expected one of"),
        ({"a": {"curriculum": {"tasks": ["x"]}}}, [], r"stages\.a\.curriculum\.tasks='x': expected one of vqa"),
        (
            {"a": {"curriculum": {"parts": ["projector"]}}},
            ["lora.parts=[language_model]"],
            r"stages\.a\.curriculum\.parts: \['projector'\] are not among lora\.parts",
        ),
        ({"a": {"training": {"warmup_rounds": 9}}}, [], r"stages\.a\.training\.warmup_rounds=9"),
        (
            {"a": {"curriculum": {"start_share": 0.5}}},
            [],
            r"stages\.a\.curriculum\.start_share=0\.5: expected 1 with privacy\.mode=dp, since which records",
        ),
        (
            {"a": {"curriculum": {"start_share": 0.5, "grading": "loss"}}},
            ["privacy.mode=none"],
            r"stages\.a\.curriculum\.start_share=0\.5: expected 1 with grading=loss",
        ),
        (["a"], [], r"stages=\['a'\]: expected a group of keys"),
        ({1: {}, "a": {}}, [], r"stages=\[1\]: expected names, each with a group of keys"),
        ({}, ["federation.server=[a]"], r"federation\.server=\['a'\]: expected a group of keys"),
        ({}, ["lora.targets.a=1"], r"lora\.targets=\{'a': 1\}: expected a list"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, stages: Any, overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        settings(tmp_path, stages, *overrides)


def test_a_stage_may_say_nothing_and_takes_the_experiments_own(tmp_path: Path) -> None:
    experiment = settings(tmp_path, {"first": None, "second": {}}, "privacy.mode=none", "curriculum.start_share=0.5")
    assert list(experiment.plan) == ["first", "second"]
    assert {stage.training for stage in experiment.plan.values()} == {experiment.training}
    place = next_place(experiment.plan, [_record(0)])
    assert place is not None
    assert place.selection.easiest_share == 0.5


def test_a_method_whose_sites_keep_a_part_cannot_go_back() -> None:
    keys = ["federation.method=fedsa_lora", "registry.promote=false", "curriculum.patience=1"]
    problems = check_federation(load_experiment("demo", keys))
    assert any("cannot go back" in problem for problem in problems)


def _record(number: int) -> RoundRecord:
    return RoundRecord(number, False, (), {}, scores(0.5), 0, 0, 1.0, 0.0, "c" * 64)
