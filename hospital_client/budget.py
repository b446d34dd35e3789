"""What a site's cohorts have spent, as `fedmed-site budget` shows it: per cohort and per run.

    verified ledger entries + policy -> budget_report -> JSON, or a table

spent: epsilon of the committed tasks. reserved: what the tasks that were reserved and never committed (a crash, a
fault) add to it; it counts as spent. left: budget minus both. Runs on one cohort compose: epsilons do not just add up.
Infinity (a task without privacy) is -1 in JSON, as on the wire.
"""

from __future__ import annotations

from typing import Any

from hospital_client.audit import finite
from hospital_client.ledger import Entries
from hospital_client.settings import SiteFolder


def budget_report(folder: SiteFolder, entries: Entries) -> dict[str, Any]:
    """The report as plain JSON types; the site's own cohort is in it even when nothing was spent."""
    policy = folder.policy
    names = sorted({*entries.cohorts, folder.settings.cohort})
    return {
        "site": folder.settings.name,
        "delta": policy.delta,
        "budget": policy.epsilon_budget,
        "cohorts": [_cohort(name, entries, policy.epsilon_budget, policy.delta) for name in names],
    }


def _cohort(name: str, entries: Entries, budget: float, delta: float) -> dict[str, Any]:
    total = entries.epsilon(name, delta)
    return {
        "cohort": name,
        **_row(name, None, entries, delta),
        "left": max(0.0, budget - total),
        "runs": [{"run": run, **_row(name, run, entries, delta)} for run in entries.runs(name)],
    }


def _row(cohort: str, run: str | None, entries: Entries, delta: float) -> dict[str, Any]:
    total = entries.epsilon(cohort, delta, run)
    spent = entries.epsilon(cohort, delta, run, committed_only=True)
    rounds = len(entries.spent_events(cohort, run))
    committed = len(entries.spent_events(cohort, run, committed_only=True))
    # Infinite already: what was reserved cannot add to it.
    reserved = 0.0 if spent == float("inf") else finite(total - spent)
    return {
        "spent": finite(spent),
        "reserved": reserved,
        "rounds_committed": committed,
        "rounds_reserved": rounds - committed,
    }
