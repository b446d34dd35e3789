"""Held-out patients from the site's ledger to the report: real sites, real model, one process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from statistics import fmean

import pytest

from aggregator.reports.federated import federated_section
from aggregator.rounds.evaluation import EVALUATION_FILE, EvaluationRecord, read_evaluation, told_scores
from aggregator.rounds.exchange import LocalExchange
from aggregator.rounds.store import RoundStore
from aggregator.rounds.strategy import run_federation
from aggregator.watching.events import EventLog
from fedmed.config import Experiment, load_experiment
from fedmed.data.manifest import Manifest, load_manifest, write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.data.schema import Example
from fedmed.metrics.scores import Scores, exact_match, token_f1, token_recall
from fedmed.models.adapter import adapter_state, add_adapter, load_adapter_state
from fedmed.models.base import BaseModel, load_base
from fedmed.privacy.accounting import PrivacyEvent
from fedmed.training.evaluate import generate_answers
from hospital_client.audit import Audit
from hospital_client.cohort import Cohort
from hospital_client.held_out import HeldOut, load_held_out
from hospital_client.ledger import Ledger
from hospital_client.results import ResultStore
from hospital_client.setup import create_site
from hospital_client.site import Site
from hospital_client.trainer import SiteTrainer

NAMES = ("north", "valley")
HELD_OUT = 24
SCORES = {"exact_match": exact_match, "open_recall": token_recall, "open_f1": token_f1}
SETTINGS = [
    f"partition.sites=[{','.join(NAMES)}]",
    "training.rounds=1",
    "training.local_steps=1",
    "training.learning_rate=0.03",
    "privacy.sample_rate=0.9",
    "lora.parts=[projector]",
    "evaluation.federated=true",
    "evaluation.max_new_tokens=8",
    "evaluation.scores=[exact_match,closed_accuracy,open_recall,open_f1]",
]
POLICY = {
    "max_sample_rate": "1.0",
    "epsilon_budget": "40.0",
    "min_noise_multiplier": "0.1",
    "allow_metrics": "true",
    "min_metrics_noise_multiplier": "0.1",
}


def held_out_examples(seed: int) -> list[Example]:
    """Phantom patients, of whom every third has a second question, which is open."""
    examples = list(phantom_examples(HELD_OUT, seed, domain="hospital", split="test"))
    more = [dataclasses.replace(example, answer="yes, on the left", answer_type="open") for example in examples[::3]]
    return [*examples, *more]


def open_site(root: Path, seed: int, policy: dict[str, str]) -> Site:
    """A hospital of 40 phantom patients and HELD_OUT others."""
    write_manifest(root / "data", phantom_examples(40, seed, domain="hospital", split="train"))
    write_manifest(root / "others", held_out_examples(seed + 10))
    settings = {"name": root.name, "data": "data", "held_out": "others", "socket": "unused.sock", "cohort": root.name}
    folder = create_site(root, settings, {**POLICY, **policy})
    manifest = load_manifest(folder.data)
    held_out = load_held_out(folder, manifest)
    trainer = SiteTrainer(folder, manifest, held_out=held_out)
    return Site(
        root.name,
        folder.policy,
        Cohort.of(folder.settings.cohort, manifest, folder.key),
        ledger=Ledger(folder.ledger),
        audit=Audit(root / "audit.jsonl"),
        results=ResultStore(root / "results"),
        trainer=trainer,
        held_out=HeldOut.of(folder, held_out, trainer),
    )


class Run:
    """Two hospitals and a consortium that scores nothing on public data."""

    def __init__(self, folder: Path, *overrides: str, **policy: str) -> None:
        self.experiment: Experiment = load_experiment("demo", [*SETTINGS, *overrides])
        self.folder, self.store = folder, RoundStore(folder / "rounds")
        self.sites = {name: open_site(folder / name, place, policy) for place, name in enumerate(NAMES)}
        self.base: BaseModel = load_base("fedmed-tiny")
        self.model = add_adapter(self.base.model, self.experiment.lora.spec, self.experiment.seed)

    def go(self) -> EvaluationRecord:
        run_federation(
            self.experiment,
            LocalExchange({name: site.handle for name, site in self.sites.items()}),
            self.store,
            lambda state: Scores(1, 0.5, None, None, 0.5, 0.5),
            EventLog(self.folder / "events.jsonl"),
            adapter_state(self.model),
            self.base.sha256,
        )
        record = read_evaluation(self.store.folder, self.store.last())
        assert record is not None
        return record

    def central(self) -> dict[str, list[float]]:
        """score -> each patient's mean, over both hospitals' held-out patients together, by the final adapter."""
        load_adapter_state(self.model, self.store.state(1))
        means: dict[str, list[float]] = {name: [] for name in (*SCORES, "closed_accuracy")}
        for name in NAMES:
            manifest = load_manifest(self.folder / name / "others")
            answers = self._answers(manifest)
            for patient in manifest.patients:
                items = [(manifest.examples[index], answers[index]) for index in patient]
                means["exact_match"].append(fmean(exact_match(given, item.answer) for item, given in items))
                for kind, scores in (("closed", ["closed_accuracy"]), ("open", ["open_recall", "open_f1"])):
                    own = [(given, item.answer) for item, given in items if item.answer_type == kind]
                    for score in scores if own else []:
                        means[score].append(fmean(SCORES.get(score, exact_match)(*pair) for pair in own))
        return means

    def _answers(self, manifest: Manifest) -> list[str]:
        images = [manifest.images(example) for example in manifest.examples]
        return generate_answers(
            self.model, self.base.processor, manifest.examples, images, batch_size=64, max_new_tokens=8
        )

    def reservations(self) -> list[int]:
        return [len(site.ledger.entries.reservations) for site in self.sites.values()]

    def close(self) -> None:
        for site in self.sites.values():
            site.ledger.close()


def test_without_privacy_the_sums_are_those_of_a_central_evaluation_of_all_held_out_patients(tmp_path: Path) -> None:
    run = Run(tmp_path, "privacy.mode=none", allow_no_privacy="true")
    record = run.go()
    central = run.central()
    assert not record.left_out and record.epsilon is None
    for told in told_scores(record):
        assert told.all.value == pytest.approx(fmean(central[told.name]), abs=1e-12), told.name
        assert (told.all.error, told.all.weight) == (0.0, len(central[told.name]))
        assert all(own.value is not None for own in told.sites.values())
    assert all(0 < fmean(means) < 1 for means in central.values()), central  # else any two evaluations would agree
    assert 0 < len(central["open_recall"]) < len(central["exact_match"]) == 2 * HELD_OUT
    run.close()


def test_with_privacy_it_costs_the_held_out_patients_alone_and_is_never_paid_twice(tmp_path: Path) -> None:
    run = Run(tmp_path, "privacy.epsilon=30", "evaluation.epsilon=20")
    record = run.go()
    central = run.central()
    assert record.epsilon is not None and 19 < record.epsilon <= 20 and not record.left_out
    for name, site in run.sites.items():
        events = site.ledger.spent_events(f"{name}.held_out")
        assert events == [PrivacyEvent(record.noise_multiplier, 1.0, 1)]
        assert events[0] not in site.ledger.spent_events(name)
        assert [line["decision"] for line in audit_of(tmp_path / name)][-2:] == ["accepted", "released"]
    (exact,) = (told for told in told_scores(record) if told.name == "exact_match")
    assert exact.all.value is not None and exact.all.error is not None and exact.all.error > 0
    assert abs(exact.all.value - fmean(central["exact_match"])) < 5 * exact.all.error
    section = federated_section(record)
    assert section is not None and json.loads(json.dumps(section, allow_nan=False)) == section

    spent = run.reservations()
    (run.store.folder / EVALUATION_FILE).unlink()  # killed before the commit: the sites hand their sums over again
    assert dataclasses.replace(run.go(), seconds=record.seconds) == record
    assert run.reservations() == spent == [2, 2]
    run.close()


def test_the_default_policy_refuses_it_and_the_run_ends_all_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path, "privacy.epsilon=30", allow_metrics="false")
    record = run.go()
    assert record.replies == () and all("allow_metrics is false" in reason for reason in record.left_out.values())
    assert run.reservations() == [1, 1]
    run.close()


def audit_of(root: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (root / "audit.jsonl").read_text().splitlines()]
