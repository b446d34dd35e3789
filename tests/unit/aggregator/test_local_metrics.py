"""What sites tell of themselves and what becomes of it: patient counts as weights, noisy counts, and the time of a reply."""

import dataclasses
from pathlib import Path

import pytest
import torch

from aggregator.rounds.exchange import LocalExchange
from aggregator.rounds.store import RoundRecord, RoundStore
from aggregator.rounds.strategy import run_federation
from aggregator.rounds.tasks import plan_privacy
from aggregator.watching.events import EventLog
from aggregator.watching.live import plain_line
from fedmed.config import load_experiment
from fedmed.errors import ConfigError
from fedmed.messages import TrainResult, decode, encode
from fedmed.metrics.scores import Scores
from fedmed.privacy.accounting import PrivacyEvent, epsilon
from fedmed.privacy.counts import SENSITIVITY
from fedmed.wire.fake_site import FakeSite

SETTINGS = ["privacy.noise_multiplier=1.0", "training.rounds=1", "partition.sites=[north,valley]"]


def run(folder: Path, sites: list[FakeSite], *overrides: str, change: dict | None = None) -> RoundRecord:
    """The first round's record; `change` replaces fields of the first site's results."""

    def spoilt(frame: bytes) -> bytes:
        reply = sites[0].handle(frame)
        message, payload = decode(reply)
        return (
            encode(dataclasses.replace(message, **(change or {})), payload)
            if isinstance(message, TrainResult)
            else reply
        )

    store = RoundStore(folder / "rounds")
    run_federation(
        load_experiment("demo", [*SETTINGS, *overrides]),
        LocalExchange({site.name: spoilt if site is sites[0] else site.handle for site in sites}),
        store,
        lambda state: Scores(10, 0.5, None, None, 0.5, 0.5),
        EventLog(folder / "events.jsonl"),
        {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.zeros(4, 2)},
        "b" * 64,
    )
    return store.records()[1]


def test_one_site_that_hides_its_count_makes_all_weigh_the_same(tmp_path: Path) -> None:
    record = run(tmp_path, [FakeSite("north", 0), FakeSite("valley", 900)])
    assert [(reply.site, reply.num_patients, reply.weight) for reply in record.replies] == [
        ("north", 0, 1.0),
        ("valley", 900, 1.0),
    ]


def test_a_count_told_at_the_start_and_hidden_later_is_named(tmp_path: Path) -> None:
    sites = [FakeSite("north", 100), FakeSite("valley", 900)]
    record = run(tmp_path, sites, "federation.quorum=1", change={"num_patients": 0})
    assert "num_patients=0: told a count when it joined" in record.left_out["north"]


def test_noisy_counts_become_an_estimate_with_its_error(tmp_path: Path) -> None:
    sites = [FakeSite("north", 2000, accuracy=0.9), FakeSite("valley", 1000, accuracy=0.6)]
    record = run(tmp_path, sites, "privacy.metrics_noise_multiplier=4.0", "privacy.sample_rate=0.1")
    assert record.local_accuracy == pytest.approx(0.8)
    deviation = 4 * SENSITIVITY * 2**0.5
    assert record.local_error == pytest.approx(deviation * (1 + 0.3**2) ** 0.5 / 300)
    assert [reply.noisy_patients for reply in record.replies] == [200.0, 100.0]


def test_too_much_noise_for_the_patients_gives_no_estimate(tmp_path: Path) -> None:
    record = run(tmp_path, [FakeSite("north", 20), FakeSite("valley", 20)], "privacy.metrics_noise_multiplier=4.0")
    assert (record.local_accuracy, record.local_error) == (None, None)


def test_without_asking_there_is_nothing(tmp_path: Path) -> None:
    record = run(tmp_path, [FakeSite("north", 2000), FakeSite("valley", 1000)])
    assert (record.local_accuracy, record.local_error) == (None, None)
    assert {(reply.noisy_correct, reply.noisy_patients) for reply in record.replies} == {(0.0, 0.0)}


@pytest.mark.parametrize(
    ("asked", "change", "reason"),
    [
        ("0.0", {"noisy_correct": 5.0, "noisy_patients": 9.0}, "noisy counts 5 and 9: expected within 0 of 0"),
        ("4.0", {"noisy_correct": 1e300}, "noisy counts 1e+300"),
    ],
)
def test_counts_that_nobody_asked_for_or_absurd_ones_leave_the_site_out(
    tmp_path: Path, asked: str, change: dict, reason: str
) -> None:
    sites = [FakeSite("north", 100), FakeSite("valley", 900)]
    asking = f"privacy.metrics_noise_multiplier={asked}"
    record = run(tmp_path, sites, "federation.quorum=1", asking, change=change)
    assert reason in record.left_out["north"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps": 0}, "took 0 steps, expected 10"),
        ({"dataset_fingerprint": "x" * 100_000}, "'" + "x" * 80 + "': expected 64 hexadecimal digits"),
        ({"dataset_fingerprint": "0" * 64 + "\n"}, "expected 64 hexadecimal digits"),
        ({"epsilon": -0.5}, "epsilon=-0.5: expected 0 or more"),
        ({"epsilon_total": -2.0}, "epsilon_total=-2: expected 0 or more"),
        ({"delta": 1.0}, "delta=1: expected 0 to 1"),
    ],
)
def test_claims_that_no_site_of_ours_makes_leave_it_out(tmp_path: Path, change: dict, reason: str) -> None:
    sites = [FakeSite("north", 100), FakeSite("valley", 900)]
    record = run(tmp_path, sites, "federation.quorum=1", "training.local_steps=10", change=change)
    assert reason in record.left_out["north"]


def test_a_round_without_privacy_is_told_as_such(tmp_path: Path) -> None:
    sites = [FakeSite("north", 100), FakeSite("valley", 900)]
    record = run(tmp_path, sites, change={"epsilon": -1.0, "epsilon_total": -1.0})
    assert not record.left_out


def test_replies_are_timed_here(tmp_path: Path) -> None:
    record = run(tmp_path, [FakeSite("north", 100, delay_s=0.05), FakeSite("valley", 100)])
    assert record.reply_seconds == max(reply.reply_seconds for reply in record.replies) >= 0.05
    assert record.seconds >= record.reply_seconds


def test_the_plan_holds_the_counts_too() -> None:
    experiment = load_experiment("demo", ["privacy.metrics_noise_multiplier=0.8", "training.rounds=3"])
    plan = plan_privacy(experiment)
    training = PrivacyEvent(plan.noise_multiplier, plan.sample_rate, 3 * plan.steps)
    counts = PrivacyEvent(0.8, plan.sample_rate, 3)
    together, alone = epsilon([training, counts], plan.delta), epsilon([training], plan.delta)
    assert 0.97 * experiment.privacy.epsilon < together <= experiment.privacy.epsilon
    assert alone < together


def test_counts_without_privacy_are_a_fault_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="metrics_noise_multiplier=2: expected 0"):
        load_experiment("demo", ["privacy.metrics_noise_multiplier=2.0", "privacy.mode=none"])


def test_a_hidden_count_is_said_so() -> None:
    assert plain_line({"kind": "joined", "site": "north", "num_patients": 0}) == (
        "north joined with an untold number of patients"
    )
