"""A federation in one process: real sites (policy, ledger, audit, training) behind the in-memory exchange.

    records = run_in_process(experiment, {"north": examples, ...}, test_examples)

What differs from `fedmed run`: the transport is in memory, and the sites train one after the other on one loaded base model.
Policy, ledger, audit, results and moments are each site's own.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aggregator.rounds.exchange import LocalExchange
from aggregator.rounds.store import RoundRecord, RoundStore
from aggregator.rounds.strategy import run_federation
from aggregator.watching.events import EventLog
from fedmed.config import Experiment
from fedmed.data.manifest import Manifest, load_manifest, write_manifest
from fedmed.data.schema import Example
from fedmed.metrics.scores import Scores
from fedmed.models.adapter import State, adapter_state, load_adapter_state, reset_adapter
from fedmed.models.base import load_base
from fedmed.models.prompts import adapted_processor
from fedmed.training.adapted import AdaptedBase
from fedmed.training.evaluate import evaluate
from hospital_client.audit import Audit
from hospital_client.ledger import Ledger
from hospital_client.results import ResultStore
from hospital_client.setup import create_site
from hospital_client.site import Cohort, Site
from hospital_client.trainer import SiteTrainer


def run_in_process(
    experiment: Experiment,
    sites: Mapping[str, Sequence[Example]],
    test: Sequence[Example],
    shared: AdaptedBase | None = None,
    score: Callable[[int, State], Scores] | None = None,
) -> list[RoundRecord]:
    """All rounds of `experiment` over `sites`, each scored on `test`; `sites` are the experiment's own, by name.

    Args:
        shared: the base model, where it is loaded already; no adapter is left on it.
        score: of the adapter after a round (0: as drawn), in the place of the score of each on `test`.
    """
    shared = shared or AdaptedBase(load_base(experiment.base_model.name, device=experiment.device))
    with tempfile.TemporaryDirectory(prefix="fedmed-bench-") as scratch:
        folder = Path(scratch)
        opened = {name: open_site(experiment, folder / name, own, shared) for name, own in sites.items()}
        exchange = LocalExchange({name: site.handle for name, site in opened.items()})
        public = write_manifest(folder / "public", test)
        drawn = shared.take(experiment.lora.spec, experiment.seed)
        reset_adapter(drawn, experiment.seed)  # another run may have left its own in it
        initial = adapter_state(drawn)
        rounds = itertools.count()

        def evaluate_round(state: State) -> Scores:
            number = next(rounds)
            return (
                score(number, state)
                if score
                else score_adapter(experiment, shared, state, public, zero_shot=not number)
            )

        store, events = RoundStore(folder / "rounds"), EventLog(folder / "events.jsonl")
        try:
            run_federation(experiment, exchange, store, evaluate_round, events, initial, shared.base.sha256)
        finally:
            shared.release()
            for site in opened.values():
                site.ledger.close()
        return store.records()


def score_adapter(
    experiment: Experiment, shared: AdaptedBase, state: State, public: Manifest, *, zero_shot: bool = False
) -> Scores:
    """The scores of an adapter on a public test set; `zero_shot`: of the first one, without its virtual tokens."""
    model, settings = shared.take(experiment.lora.spec, experiment.seed), experiment.evaluation
    load_adapter_state(model, state)
    processor = shared.base.processor if zero_shot else adapted_processor(shared.base, experiment.lora.spec)
    return evaluate(model, processor, public, batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens)[0]


def open_site(experiment: Experiment, root: Path, examples: Sequence[Example], shared: AdaptedBase) -> Site:
    """A site on `examples` whose policy allows the experiment and no more epsilon than it plans."""
    write_manifest(root / "data", examples)
    privacy = experiment.privacy
    policy = {
        "min_patients": "1",
        "methods": f"[{experiment.federation.method}]",
        "max_rank": str(experiment.lora.rank),
        "delta": str(privacy.delta),
        "epsilon_budget": str(privacy.epsilon),
        "max_sample_rate": str(privacy.sample_rate),
        "max_local_steps": str(experiment.most_local_steps),
        "max_rounds": str(experiment.rounds),
        "allow_no_privacy": str(privacy.mode == "none").lower(),
        "allow_insecure_noise": str(privacy.insecure_noise_seed >= 0).lower(),
        "allow_metrics": str(privacy.metrics_noise_multiplier > 0).lower(),
        "min_metrics_noise_multiplier": str(privacy.metrics_noise_multiplier or 1.0),
        "patient_count": "rounded",
    }
    base = experiment.base_model.name
    settings = {
        "name": root.name,
        "data": "data",
        "socket": "unused.sock",
        "physical_batch": "256",
        "base_models": json.dumps({base: base}),
    }
    folder = create_site(root, settings, policy)
    manifest: Manifest = load_manifest(folder.data)
    return Site(
        root.name,
        folder.policy,
        Cohort.of(folder.settings.cohort, manifest, folder.key),
        ledger=Ledger(folder.ledger),
        audit=Audit(folder.audit),
        results=ResultStore(root / "results"),
        trainer=SiteTrainer(folder, manifest, lambda *place: shared),
    )
