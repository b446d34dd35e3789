"""Every aggregation method through real sites and the server app's own run: policy, ledger, DP rounds, wire, merged model."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers_training import mixed_cohort
from peft import PeftModel

from aggregator import app
from aggregator.methods import METHODS, load_federation
from aggregator.registry.model_folder import verify_model
from aggregator.rounds.exchange import LocalExchange
from aggregator.rounds.store import RoundStore
from aggregator.watching.events import EventLog
from fedmed.config import Experiment, to_dict
from fedmed.data.collate import Collator
from fedmed.data.manifest import load_manifest, write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.models.adapter import adapter_state, add_adapter, load_adapter_state, remove_adapter
from fedmed.models.base import load_base
from hospital_client.audit import Audit
from hospital_client.ledger import Ledger
from hospital_client.personal import read_tensors
from hospital_client.results import ResultStore
from hospital_client.settings import load_site
from hospital_client.setup import create_site
from hospital_client.site import Cohort, Site
from hospital_client.trainer import SiteTrainer

SITES = ("north", "valley")
ROUNDS = 2
KEYS = [
    f"partition.sites=[{','.join(SITES)}]",
    "federation.quorum=2",
    f"training.rounds={ROUNDS}",
    "training.local_steps=1",
    "training.keep_state=false",
    "training.optimizer=sgd",
    "training.learning_rate=0.3",
    "privacy.epsilon=8",
    "privacy.sample_rate=0.5",
    "lora.rank=4",
    "lora.alpha=8",
    "lora.parts=[language_model]",
    "lora.targets=[q_proj,down_proj]",
]
# What a method asks of an experiment, and a second case for those that mix ranks.
NEEDS = {"fed_sb": ["lora.core=true"], "fedsa_lora": ["registry.promote=false"]}
CASES = [
    *((name, NEEDS.get(name, [])) for name in METHODS),
    *((name, ["federation.site_ranks={valley: 2}"]) for name, method in METHODS.items() if method.mixed_ranks),
]


def made_site(root: Path, experiment: Experiment, seed: int) -> Path:
    write_manifest(root / "data", phantom_examples(12, seed, domain="hospital", split="train"))
    policy = {"min_patients": "1", "patient_count": "rounded", "epsilon_budget": "9"}
    create_site(root, {"name": root.name, "data": "data", "socket": "unused.sock", "physical_batch": "64"}, policy)
    return root


@contextmanager
def opened(roots: list[Path]) -> Iterator[dict[str, Site]]:
    """The sites as their daemons open them."""
    sites = {}
    for root in roots:
        folder = load_site(root)
        manifest = load_manifest(folder.data)
        sites[root.name] = Site(
            root.name,
            folder.policy,
            Cohort.of(folder.settings.cohort, manifest, folder.key),
            ledger=Ledger(folder.ledger),
            audit=Audit(folder.audit),
            results=ResultStore(root / "results"),
            trainer=SiteTrainer(folder, manifest),
        )
    try:
        yield sites
    finally:
        for site in sites.values():
            site.ledger.close()


def federate(folder: Path, experiment: Experiment) -> Path:
    """All rounds over `SITES`, as `fedmed run` has the server app do them; returns the run's folder."""
    run_dir = folder / "run"
    run_dir.mkdir()
    (run_dir / "experiment.json").write_text(json.dumps(to_dict(experiment)))
    (run_dir / "run.json").write_text(json.dumps({"key": "k", "data_source": "phantom", "notes": []}))
    write_manifest(run_dir / "public", phantom_examples(3, 5, domain="public", split="test"))
    roots = [made_site(folder / name, experiment, seed) for seed, name in enumerate(SITES)]
    with opened(roots) as sites:
        exchange = LocalExchange({name: site.handle for name, site in sites.items()})
        app.run(run_dir, exchange, EventLog(run_dir / "events.jsonl"))
    return run_dir


@pytest.mark.parametrize(("method", "keys"), CASES, ids=["-".join([name, *keys[:1]]) for name, keys in CASES])
def test_a_run_ends_in_a_merged_model_that_answers_as_the_adapter_does(
    method: str, keys: list[str], tmp_path: Path
) -> None:
    experiment = load_federation("pneumonia", [*KEYS, *keys, f"federation.method={method}"])
    run_dir = federate(tmp_path, experiment)
    store = RoundStore(run_dir / "rounds")
    records, state = store.records(), store.state(ROUNDS)
    assert len(records) == ROUNDS + 1
    assert not any(record.left_out or record.skipped for record in records)
    assert [reply.site for record in records[1:] for reply in record.replies] == list(SITES) * ROUNDS
    assert max(reply.epsilon for reply in records[-1].replies) <= 8

    manifest = mixed_cohort(tmp_path / "questions")
    base = load_base("fedmed-tiny")
    examples = manifest.examples[:4]
    inputs = Collator(base.processor, 512).train_batch(examples, [manifest.images(item) for item in examples]).inputs
    with torch.no_grad():
        plain = base.model(**inputs).logits
        model = add_adapter(base.model, experiment.lora.spec, experiment.seed)
        start = adapter_state(model)
        load_adapter_state(model, state)
        expected = model(**inputs).logits
        remove_adapter(model)
        notes = verify_model(run_dir / "model")["notes"]
        assert bool(METHODS[method].personal) == any("its own lora_B" in note for note in notes)
        merged = load_base(str(run_dir / "model" / "merged")).model
        assert float((merged(**inputs).logits - expected).abs().max()) < 1e-4
        exported = PeftModel.from_pretrained(base.model, str(run_dir / "model" / "adapter"))
        assert float((exported(**inputs).logits - expected).abs().max()) < 1e-4
    moved = any(key not in start or not torch.equal(value, start[key]) for key, value in state.items())
    assert moved
    changed = float((expected - plain).abs().max()) > 1e-3
    assert changed != bool(METHODS[method].personal)  # with the B that stays at the sites, their model is theirs alone
    kept = {
        path.name: sorted(own.name for own in path.glob("kept/*/*")) for path in (tmp_path / name for name in SITES)
    }
    rounds = [f"{number}.safetensors" for number in (ROUNDS - 1, ROUNDS)] if METHODS[method].personal else []
    assert kept == dict.fromkeys(SITES, rounds)


def test_a_hospitals_policy_allows_every_method_until_the_hospital_says_otherwise(tmp_path: Path) -> None:
    """They cost a patient the same: docs/privacy.md."""
    folder = create_site(tmp_path / "north", {"name": "north", "data": "data"}, {})
    assert set(folder.policy.methods) == set(METHODS)


def test_a_hospital_makes_its_own_model_of_what_stays_with_it(tmp_path: Path) -> None:
    """Base, A and the site's B; what the consortium publishes has no B, and the two hospitals' models differ."""
    experiment = load_federation("pneumonia", [*KEYS, *NEEDS["fedsa_lora"], "federation.method=fedsa_lora"])
    federate(tmp_path, experiment)
    (run,) = (path.name for path in tmp_path.glob("north/kept/*"))
    base = load_base("fedmed-tiny")
    manifest = mixed_cohort(tmp_path / "questions")
    examples = manifest.examples[:4]
    inputs = Collator(base.processor, 512).train_batch(examples, [manifest.images(item) for item in examples]).inputs
    logits = [base.model(**inputs).logits.detach()]
    for name in SITES:
        done = fedmed_site("personal", "export", str(tmp_path / name), run, str(tmp_path / f"{name}-model"))
        assert done.returncode == 0 and f"round {ROUNDS} of {run}" in done.stdout, done.stderr
        own = load_base(str(tmp_path / f"{name}-model")).model
        logits.append(own(**inputs).logits.detach())
        state = read_tensors(tmp_path / name / "kept" / run / f"{ROUNDS}.safetensors")
        model = add_adapter(base.model, experiment.lora.spec, experiment.seed)
        load_adapter_state(model, state)
        assert float((model(**inputs).logits - logits[-1]).abs().max()) < 1e-4
        remove_adapter(model)
    assert all(float((one - other).abs().max()) > 1e-3 for one, other in itertools.combinations(logits, 2))
    for wrong, words in [
        (run, "exists already"),
        ("other", f"keeps no model of run 'other'\n  hint: it keeps something of: {run}"),
    ]:
        refused = fedmed_site("personal", "export", str(tmp_path / "north"), wrong, str(tmp_path / "north-model"))
        assert refused.returncode != 0 and words in refused.stderr and "Traceback" not in refused.stderr


def fedmed_site(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hospital_client.cli", *arguments], capture_output=True, text=True)
