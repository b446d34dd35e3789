"""The round loop under a SuperLink with node keys: a name counts only with the key that was admitted for it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from aggregator.joining import admitted, provision
from aggregator.rounds.exchange import LocalExchange
from aggregator.rounds.roster import Roster
from aggregator.rounds.store import RoundStore
from aggregator.rounds.strategy import run_federation
from aggregator.watching.events import EventLog, read_events
from fedmed.config import load_experiment
from fedmed.errors import FederationError
from fedmed.messages import decode
from fedmed.metrics.scores import Scores
from fedmed.wire.fake_site import FakeSite

SITES = ("north", "harbour", "valley")


def run(folder: Path, *overrides: str) -> list[dict]:
    """Two rounds of three sites, nodes 1 to 3 in the order of SITES; returns the events."""
    fixed = [
        "privacy.noise_multiplier=1.0",
        "training.rounds=2",
        "federation.join_timeout_s=0.3",
        "federation.quorum=2",
    ]
    experiment = load_experiment("demo", [*fixed, f"partition.sites=[{','.join(SITES)}]", *overrides])
    exchange = LocalExchange({name: FakeSite(name, 100, shift=1.0).handle for name in SITES})
    initial = {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.zeros(4, 2)}
    events = EventLog(folder / "events.jsonl")
    run_federation(
        experiment,
        exchange,
        RoundStore(folder / "rounds"),
        lambda state: Scores(10, 0.5, None, None, 0.5, 0.5),
        events,
        initial,
        "b" * 64,
    )
    return read_events(events.path)


@pytest.fixture
def consortium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> provision.Consortium:
    made = provision.init(tmp_path / "c", ["aggregator.example.org"])
    monkeypatch.setenv(admitted.FOLDER_KEY, str(made.root))
    return made


def keys(consortium: provision.Consortium, *sites: str) -> None:
    """Node 1 has the key of the first of `sites`, and so on."""
    nodes = {str(node): site for node, site in enumerate(sites, start=1)}
    (consortium.root / admitted.NODES).write_text(json.dumps(nodes))


def test_sites_with_their_own_keys_take_part(consortium: provision.Consortium, tmp_path: Path) -> None:
    keys(consortium, *SITES)
    events = run(tmp_path)
    assert {event["site"] for event in events if event["kind"] == "reply"} == set(SITES)
    assert not [event for event in events if event["kind"] in ("left_out", "warning")]


def test_a_site_that_speaks_for_another_is_left_out_and_named(consortium: provision.Consortium, tmp_path: Path) -> None:
    keys(consortium, "north", "harbour", "harbour")
    events = run(tmp_path)
    assert {event["site"] for event in events if event["kind"] == "reply"} == {"north", "harbour"}
    reasons = [event["reason"] for event in events if event["kind"] == "left_out"]
    assert "calls itself 'valley' with the key of site harbour" in reasons


def test_a_revoked_site_is_named_when_the_quorum_is_missed(consortium: provision.Consortium, tmp_path: Path) -> None:
    provision.add_site(consortium, "valley")
    provision.revoke(consortium, "valley", "left")
    keys(consortium, "north")
    with pytest.raises(FederationError, match=r"valley \(revoked on 20"):
        run(tmp_path)


def test_a_revoked_site_is_named_in_every_round_of_the_others(consortium: provision.Consortium, tmp_path: Path) -> None:
    provision.add_site(consortium, "valley")
    provision.revoke(consortium, "valley", "left")
    keys(consortium, "north", "harbour")
    events = run(tmp_path)
    said = [event for event in events if event["kind"] == "left_out" and event["site"] == "valley"]
    assert [event["round"] for event in said] == [1, 2]
    assert all(event["reason"].startswith("revoked on 20") for event in said)


def test_a_certificate_near_its_end_is_said_once_a_round(consortium: provision.Consortium, tmp_path: Path) -> None:
    keys(consortium, *SITES)
    provision.renew(consortium, now=datetime.now(UTC) - timedelta(days=340))
    said = [event for event in run(tmp_path) if event["kind"] == "warning"]
    assert [event["round"] for event in said] == [1, 2]
    assert all("ends in 25 days" in event["message"] for event in said)


def test_plain_text_beyond_loopback_is_said_once_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(admitted.FOLDER_KEY, raising=False)
    monkeypatch.setenv(admitted.EXPOSED_KEY, "10.0.0.1:9092")
    said = [event for event in run(tmp_path) if event["kind"] == "warning"]
    assert [event["round"] for event in said] == [1, 2]
    assert all(event["message"].startswith("INSECURE") for event in said)


class Asking(LocalExchange):
    """Notes how long each node is given to say who it is."""

    def __init__(self, sites) -> None:
        super().__init__(sites)
        self.given: list[float] = []

    def send(self, frames, deadline_s, tell=lambda node, online: None):
        self.given += [deadline_s] if all(decode(frame)[0].type == "describe" for frame in frames.values()) else []
        return super().send(frames, deadline_s, tell)


def test_a_node_that_says_nothing_does_not_hold_the_round_up_for_long(tmp_path: Path) -> None:
    experiment = load_experiment("demo", ["federation.join_timeout_s=120", f"partition.sites=[{','.join(SITES)}]"])
    exchange = Asking({name: FakeSite(name, 100).handle for name in SITES})
    roster = Roster(experiment, "run", exchange, EventLog(tmp_path / "events.jsonl"))
    assert sorted(roster.ready().values()) == sorted(SITES)
    assert exchange.given == [20.0]
