"""Whether a planned run fits what a site's patients have left. In: a question, the site's folder; out: the plan.

    policy.yaml, verified ledger entries -> Spent;  Question + Spent -> Plan, with what the policy would refuse as notes

| question without     | what stands in                                              |
| -------------------- | ----------------------------------------------------------- |
| delta                | delta of the policy, which the budget is of                 |

With an experiment whose held-out patients are asked, what that costs them, on top of what they have spent.
"""

from __future__ import annotations

import dataclasses

from fedmed.config import Experiment
from fedmed.held_out_plan import with_evaluation
from fedmed.messages import PrivacySpec, ReleaseSpec
from fedmed.privacy.accounting import group_events
from fedmed.privacy.planning import HeldOut, Plan, Spent, make_plan
from fedmed.privacy.question import Question
from hospital_client.held_out import cohort_name
from hospital_client.ledger import Entries
from hospital_client.policy import Policy, privacy_breaches, release_breaches
from hospital_client.settings import SiteFolder


def site_plan(question: Question, folder: SiteFolder, entries: Entries, experiment: Experiment | None = None) -> Plan:
    """The plan on top of what the site's present cohort has spent, and its held-out patients where `experiment` asks them.

    Raises:
        ConfigError, PrivacyError: as fedmed.privacy.planning.make_plan.
    """
    cohort = folder.settings.cohort
    plan = make_plan(question, _spent(cohort, folder, entries))
    others = _spent(cohort_name(folder), folder, entries) if folder.held_out else None
    plan = with_evaluation(plan, experiment, cohort, others)
    refused = [f"the site's policy would refuse it: {breach}" for breach in _breaches(folder.policy, plan)]
    if plan.held_out:
        refused += _held_out_notes(folder, plan.held_out)
    return dataclasses.replace(plan, warnings=(*plan.warnings, *refused))


def _spent(cohort: str, folder: SiteFolder, entries: Entries) -> Spent:
    policy = folder.policy
    return Spent(cohort, group_events(entries.spent_events(cohort)), policy.delta, policy.epsilon_budget)


def _held_out_notes(folder: SiteFolder, asked: HeldOut) -> list[str]:
    """Why the site would not answer the evaluation."""
    breaches = release_breaches(folder.policy, ReleaseSpec("dp", asked.noise_multiplier, asked.delta))
    notes = [f"the site's policy would refuse the evaluation: {breach}" for breach in breaches]
    if folder.held_out is None:
        notes.append("the site would refuse the evaluation: site.yaml names no manifest as held_out")
    return notes


def _breaches(policy: Policy, plan: Plan) -> list[str]:
    run = plan.run
    spec = PrivacySpec(
        mode="dp",
        noise_multiplier=run.noise_multiplier,
        sample_rate=run.sample_rate,
        max_grad_norm=1.0,
        records_per_patient=1,
        steps=run.local_steps,
        delta=plan.delta,
        max_patients=run.max_patients,
        metrics_noise_multiplier=run.metrics_noise_multiplier,
    )
    breaches = privacy_breaches(policy, spec)
    if run.rounds > policy.max_rounds:
        breaches.append(f"rounds={run.rounds}, expected at most {policy.max_rounds}")
    if run.max_patients and policy.patient_count == "hidden":
        breaches.append(f"privacy.max_patients={run.max_patients}, expected 0: the patient count is hidden")
    return breaches
