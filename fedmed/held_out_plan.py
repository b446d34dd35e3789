"""What the federated evaluation costs a site's held-out patients. In: an experiment; out: its one release, alone and in a plan.

    >>> from fedmed.config import load_experiment
    >>> spec = plan_evaluation(load_experiment("demo", ["evaluation.federated=true", "evaluation.epsilon=2"]))
    >>> 1.99 < (release_cost(spec) or 0) <= 2
    True

Why they are a cohort of their own: docs/decisions/0015-federated-evaluation.md.
"""

from __future__ import annotations

from dataclasses import replace

from fedmed.config import Experiment
from fedmed.messages import ReleaseSpec
from fedmed.privacy.accounting import PrivacyEvent, epsilon
from fedmed.privacy.calibration import smallest_noise
from fedmed.privacy.planning import HeldOut, Plan, Spent

# Behind a cohort's name: its held-out patients, in the ledger. No cohort of site.yaml can be called so.
SUFFIX = ".held_out"


def plan_evaluation(experiment: Experiment) -> ReleaseSpec:
    """The privacy of the one release: its noise as given, or the least that stays within evaluation.epsilon.

    Held-out patients are not trained on, so that it is the only event of the run that concerns them.

    Raises:
        PrivacyError: no noise reaches the asked epsilon.
    """
    privacy, asked = experiment.privacy, experiment.evaluation
    noise = 0.0
    if privacy.mode == "dp":
        noise = asked.noise_multiplier or smallest_noise(lambda value: [_release(value)], asked.epsilon, privacy.delta)
    return ReleaseSpec(privacy.mode, noise, privacy.delta, privacy.insecure_noise_seed)


def release_cost(privacy: ReleaseSpec) -> float | None:
    """Epsilon of the release at its delta; None where there is no guarantee."""
    if not privacy.protects:
        return None
    return epsilon([_release(privacy.noise_multiplier)], privacy.delta)


def with_evaluation(plan: Plan, experiment: Experiment | None, cohort: str, spent: Spent | None = None) -> Plan:
    """The plan with what the experiment's federated evaluation costs the held-out patients; as it is where there is none.

    Args:
        cohort: of the patients who are trained on; empty where no site is named.
        spent: by the held-out patients of that cohort, where their ledger is known.

    Raises:
        PrivacyError: no noise reaches the asked epsilon.
    """
    if experiment is None or not experiment.evaluation.federated:
        return plan
    asked = replace(experiment, privacy=replace(experiment.privacy, delta=plan.delta))
    event = _release(plan_evaluation(asked).noise_multiplier)
    held_out = HeldOut(
        cohort=(cohort or "COHORT") + SUFFIX,
        noise_multiplier=event.noise_multiplier,
        epsilon=epsilon([event], plan.delta),
        delta=plan.delta,
        total=epsilon([*spent.events, event], spent.delta) if spent else None,
        budget=spent.budget if spent else None,
    )
    return replace(plan, held_out=held_out)


def _release(noise_multiplier: float) -> PrivacyEvent:
    """Every held-out patient is asked, once."""
    return PrivacyEvent(noise_multiplier, 1.0, 1)
