"""Noisy counts from the site's ledger to the round's record: real sites, real training, one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from aggregator.rounds.exchange import LocalExchange
from aggregator.rounds.store import RoundRecord, RoundStore
from aggregator.rounds.strategy import run_federation
from aggregator.watching.events import EventLog
from fedmed.config import Experiment, load_experiment
from fedmed.data.manifest import load_manifest, write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.metrics.scores import Scores
from fedmed.models.adapter import State, adapter_state, add_adapter, load_adapter_state
from fedmed.models.base import load_base
from fedmed.privacy.accounting import PrivacyEvent
from fedmed.training.evaluate import evaluate
from hospital_client.audit import Audit
from hospital_client.ledger import Ledger
from hospital_client.results import ResultStore
from hospital_client.setup import create_site
from hospital_client.site import Cohort, Site
from hospital_client.trainer import SiteTrainer

NAMES = ["north", "valley"]
ALLOW = {"allow_metrics": "true", "min_metrics_noise_multiplier": "0.5"}
SETTINGS = [
    f"partition.sites=[{','.join(NAMES)}]",
    "training.rounds=2",
    "training.local_steps=1",
    "privacy.sample_rate=0.9",
    "privacy.epsilon=30",
    "privacy.metrics_noise_multiplier=0.5",
    "lora.parts=[projector]",
]


def open_site(root: Path, seed: int, policy: dict[str, str]) -> Site:
    """A hospital with 40 phantom patients and the policy that `fedmed-site init` writes, but for `policy`."""
    write_manifest(root / "data", phantom_examples(40, seed, domain="hospital", split="train"))
    settings = {"name": root.name, "data": "data", "socket": "unused.sock", "cohort": root.name}
    wide = {"max_sample_rate": "1.0", "epsilon_budget": "40.0", "min_noise_multiplier": "0.1"}
    folder = create_site(root, settings, {**wide, **policy})
    manifest = load_manifest(folder.data)
    return Site(
        root.name,
        folder.policy,
        Cohort.of(folder.settings.cohort, manifest, folder.key),
        ledger=Ledger(folder.ledger),
        audit=Audit(root / "audit.jsonl"),
        results=ResultStore(root / "results"),
        trainer=SiteTrainer(folder, manifest),
    )


class Consortium:
    """The aggregator's half: scores adapters on public phantoms of the hospitals' own kind."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self._experiment, self._folder = experiment, folder
        self._base = load_base(experiment.base_model.name)
        self._model = add_adapter(self._base.model, experiment.lora.spec, experiment.seed)
        self._public = write_manifest(folder / "public", phantom_examples(80, 9, domain="hospital", split="test"))

    def run(self, sites: dict[str, Site]) -> list[RoundRecord]:
        exchange = LocalExchange({name: site.handle for name, site in sites.items()})
        store, events = RoundStore(self._folder / "rounds"), EventLog(self._folder / "events.jsonl")
        initial, sha256 = adapter_state(self._model), self._base.sha256
        run_federation(self._experiment, exchange, store, self._score, events, initial, sha256)
        return store.records()

    def _score(self, state: State) -> Scores:
        load_adapter_state(self._model, state)
        return evaluate(self._model, self._base.processor, self._public, batch_size=80, max_new_tokens=8)[0]


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[dict[str, Site]]:
    opened = {name: open_site(tmp_path / name, index, ALLOW) for index, name in enumerate(NAMES)}
    yield opened
    for site in opened.values():
        site.ledger.close()


def test_counts_are_charged_sent_and_near_the_truth(tmp_path: Path, sites: dict[str, Site]) -> None:
    records = Consortium(load_experiment("demo", SETTINGS), tmp_path).run(sites)
    for before, record in pairwise(records):
        assert record.local_accuracy is not None
        assert before.scores is not None
        # 72 patients are drawn on average, other phantoms than the public 80: four deviations of either, and the noise's.
        apart = abs(record.local_accuracy - before.scores.accuracy)
        assert apart < 4 * (0.25 / 72 + 0.25 / 80 + (record.local_error or 0) ** 2) ** 0.5
        assert len({(reply.noisy_correct, reply.noisy_patients) for reply in record.replies}) == 2
        assert {reply.weight for reply in record.replies} == {1.0}  # the default policy hides the counts
    for name, site in sites.items():
        events = site.ledger.spent_events(name)
        assert events.count(PrivacyEvent(0.5, 0.9, 1)) == 2
        assert len(events) == 4  # and one of training a round
        assert site.epsilon_spent() <= 30
        assert records[-1].replies[NAMES.index(name)].epsilon_total == pytest.approx(site.epsilon_spent())


def test_the_default_policy_refuses_them_before_anything_is_read_or_spent(tmp_path: Path) -> None:
    site = open_site(tmp_path / "north", 0, {})
    overrides = [*SETTINGS, "partition.sites=[north]", "federation.quorum=1", "training.rounds=1"]
    (_, record) = Consortium(load_experiment("demo", overrides), tmp_path).run({"north": site})
    assert record.skipped
    assert "allow_metrics is false" in record.left_out["north"]
    assert site.epsilon_spent() == 0.0
    decisions = [json.loads(line)["decision"] for line in (tmp_path / "north" / "audit.jsonl").read_text().splitlines()]
    assert decisions == ["described", "refused"]
    site.ledger.close()
