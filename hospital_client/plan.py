"""Whether a planned run fits what a site's patients have left. In: a question, the site's folder; out: the plan.

    policy.yaml, verified ledger entries -> Spent;  Question + Spent -> Plan, with what the policy would refuse as notes

| question without     | what stands in                                              |
| -------------------- | ----------------------------------------------------------- |
| delta                | delta of the policy, which the budget is of                 |
"""

from __future__ import annotations

import dataclasses

from fedmed.messages import PrivacySpec
from fedmed.privacy.accounting import group_events
from fedmed.privacy.planning import Plan, Spent, make_plan
from fedmed.privacy.question import Question
from hospital_client.ledger import Entries
from hospital_client.policy import Policy, privacy_breaches
from hospital_client.settings import SiteFolder


def site_plan(question: Question, folder: SiteFolder, entries: Entries) -> Plan:
    """The plan on top of what the site's present cohort has spent.

    Raises:
        ConfigError, PrivacyError: as fedmed.privacy.planning.make_plan.
    """
    policy, cohort = folder.policy, folder.settings.cohort
    spent = Spent(cohort, group_events(entries.spent_events(cohort)), policy.delta, policy.epsilon_budget)
    plan = make_plan(question, spent)
    refused = [f"the site's policy would refuse it: {breach}" for breach in _breaches(policy, plan)]
    return dataclasses.replace(plan, warnings=(*plan.warnings, *refused))


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
