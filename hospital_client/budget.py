"""What a site's cohorts have spent, as `fedmed-site budget` shows it: per cohort and per run.

    ledger + manifest + consent + policy -> budget_report -> JSON, or budget_lines, a table

spent: epsilon of the committed tasks. reserved: what the tasks that were reserved and never committed (a crash, a
fault) add to it; it counts as spent. left: budget minus both. Runs on one cohort compose: epsilons do not just add up.
Cohorts that hold or held the same patients spend of one budget: each one's row has the spending of all of them.
Infinity (a task without privacy) is -1 in JSON, as on the wire.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from fedmed.data.manifest import read_pseudonyms
from fedmed.errors import DataError
from fedmed.held_out_plan import SUFFIX
from fedmed.privacy.accounting import group_events
from hospital_client.audit import finite
from hospital_client.consent import read_consent, withdrawn
from hospital_client.held_out import cohort_name
from hospital_client.ledger import Entries, Ledger
from hospital_client.settings import SiteFolder


def present_entries(folder: SiteFolder) -> Entries:
    """The ledger as a daemon that starts now would have it: with the members of the present manifest. Writes nothing.

    Where the manifest cannot be read, with the members that the ledger noted last; `fedmed-site check` names the fault.

    Raises:
        LedgerError: it cannot be trusted.
    """
    entries = Ledger.read(folder.ledger)
    with contextlib.suppress(DataError):
        entries.membership.add(folder.settings.cohort, read_pseudonyms(folder.data, folder.key))
    if folder.held_out is not None:
        with contextlib.suppress(DataError):
            entries.membership.add(cohort_name(folder), read_pseudonyms(folder.held_out, folder.key))
    return entries


def budget_report(folder: SiteFolder) -> dict[str, Any]:
    """The report as plain JSON types; the site's own cohort is in it even when nothing was spent.

    Raises:
        LedgerError: ledger or consent cannot be trusted.
    """
    policy, entries = folder.policy, present_entries(folder)
    gone = withdrawn(read_consent(folder.consent))
    names = sorted({*entries.cohorts, folder.settings.cohort})
    return {
        "site": folder.settings.name,
        "cohort": folder.settings.cohort,
        "delta": policy.delta,
        "budget": policy.epsilon_budget,
        "generation": entries.generation,
        "withdrawn": len(gone),
        "cohorts": [_cohort(name, entries, gone, policy.epsilon_budget, policy.delta) for name in names],
    }


def public_report(folder: SiteFolder) -> dict[str, Any]:
    """What the consortium may have, to plan with (`fedmed privacy plan --spent`): every task that the site took, whoever
    its patients were, as in hospital_client.release. No count of patients, and nothing of who shares a cohort.

    Raises:
        LedgerError: it cannot be trusted.
    """
    name, policy = folder.settings.name, folder.policy
    events = group_events(Ledger.read(folder.ledger).spent_events(None))
    return {
        "site": name,
        "cohort": name,
        "delta": policy.delta,
        "budget": policy.epsilon_budget,
        "cohorts": [{"cohort": name, "events": [dataclasses.asdict(event) for event in events]}],
    }


def budget_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as a table for a terminal."""
    yield f"site {report['site']}: budget epsilon {report['budget']:g} at delta {report['delta']:g} per patient"
    yield f"{'cohort / run':36} {'spent':>9} {'reserved':>9} {'left':>9}  rounds"
    for cohort in report["cohorts"]:
        yield _line(cohort["cohort"], cohort, f"{cohort['left']:.3f}")
        for run in cohort["runs"]:
            yield _line(f"  {run['run']}", run, "")
        yield from (f"  {note}" for note in _notes(cohort, report["cohort"]))
    yield f"ledger at line {report['generation']}, its witness agrees; patients who withdrew consent: {report['withdrawn']}"


def epsilon_text(value: float) -> str:
    """Epsilon as a person reads it; -1 is infinity."""
    return "infinite" if value < 0 else f"{value:.3f}"


def _cohort(name: str, entries: Entries, gone: frozenset[bytes], budget: float, delta: float) -> dict[str, Any]:
    members = entries.membership.members(name) or frozenset()
    return {
        "cohort": name,
        **_row(name, None, entries, delta),
        "left": max(0.0, budget - entries.epsilon(name, delta)),
        "events": [dataclasses.asdict(event) for event in group_events(entries.spent_events(name))],
        "patients": len(members),
        "withdrawn": len(members & gone),
        "shares_patients_with": entries.sharing(name),
        "runs": [{"run": run, **_row(name, run, entries, delta)} for run in entries.runs(name)],
    }


def _row(cohort: str, run: str | None, entries: Entries, delta: float) -> dict[str, Any]:
    total = entries.epsilon(cohort, delta, run)
    spent = entries.epsilon(cohort, delta, run, committed_only=True)
    rounds = len(entries.spent(cohort, run))
    committed = len(entries.spent(cohort, run, committed_only=True))
    # Infinite already: what was reserved cannot add to it.
    reserved = 0.0 if spent == float("inf") else finite(total - spent)
    return {
        "spent": finite(spent),
        "reserved": reserved,
        "rounds_committed": committed,
        "rounds_reserved": rounds - committed,
    }


def _line(label: str, row: dict[str, Any], left: str) -> str:
    rounds = f"{row['rounds_committed']}" + (f" + {row['rounds_reserved']} reserved" if row["rounds_reserved"] else "")
    return f"{label:36} {epsilon_text(row['spent']):>9} {epsilon_text(row['reserved']):>9} {left:>9}  {rounds}"


def _notes(cohort: dict[str, Any], own: str) -> Iterator[str]:
    if cohort["cohort"] == own + SUFFIX:
        yield "(held out: never trained on)"
    elif cohort["cohort"] != own:
        yield "(not this site's cohort now)"
    if cohort["withdrawn"]:
        yield f"(withdrew consent and not drawn: {cohort['withdrawn']} of its {cohort['patients']} patients)"
    if others := cohort["shares_patients_with"]:
        yield f"(holds patients of {', '.join(others)}: what that spent is counted here too)"
