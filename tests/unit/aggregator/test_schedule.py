"""The learning rate of each round, by hand."""

from __future__ import annotations

import math

import pytest

from aggregator.methods import METHODS
from aggregator.rounds.stages import Place
from aggregator.rounds.tasks import learning_rate, make_task, plan_privacy
from fedmed.config import load_experiment
from fedmed.errors import ConfigError


def rates(*overrides: str) -> list[float]:
    training = load_experiment("demo", ["training.learning_rate=0.8", *overrides]).training
    return [learning_rate(training, number) for number in range(1, training.rounds + 1)]


def test_constant() -> None:
    assert rates("training.rounds=3", "training.schedule=constant") == [0.8, 0.8, 0.8]
    assert rates("training.rounds=4", "training.warmup_rounds=3") == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_cosine() -> None:
    falling = [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5))]
    assert rates("training.rounds=4", "training.schedule=cosine") == pytest.approx(falling)
    warmed = rates("training.rounds=5", "training.schedule=cosine", "training.warmup_rounds=1")
    assert warmed == pytest.approx([0.4, *falling])


@pytest.mark.parametrize("rounds", [1, 2, 7, 50])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_one_peak_and_no_round_without_training(rounds: int, schedule: str) -> None:
    for warm_up in range(min(rounds, 5)):
        found = rates(f"training.rounds={rounds}", f"training.schedule={schedule}", f"training.warmup_rounds={warm_up}")
        assert min(found) > 0
        assert max(found) == found[warm_up] == 0.8
        assert found[: warm_up + 1] == sorted(found[: warm_up + 1])
        assert found[warm_up:] == sorted(found[warm_up:], reverse=True)


def test_a_task_carries_its_rounds_rate() -> None:
    experiment = load_experiment("demo", ["training.schedule=cosine", "privacy.noise_multiplier=1.0"])
    privacy = plan_privacy(experiment)
    method = METHODS[experiment.federation.method]
    (stage,) = experiment.plan.values()
    places = [Place(number, number, "", stage, 0) for number in (1, 2)]
    sent = [make_task(experiment, method, privacy, place, "r", "b" * 64, {}, 8).optimizer for place in places]
    assert [spec.learning_rate for spec in sent] == [learning_rate(experiment.training, number) for number in (1, 2)]
    assert sent[0].learning_rate > sent[1].learning_rate


def test_a_warm_up_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.warmup_rounds=3: expected below 3, the rounds"):
        load_experiment("demo", ["training.rounds=3", "training.warmup_rounds=3"])
