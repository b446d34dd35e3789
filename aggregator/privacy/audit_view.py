"""Runs audits of the privacy engine and shows them. In: names of faults to put in; out: a table or JSON, and a verdict.

    >>> audits = dict(run_audits(["healthy"], repetitions=100))
    >>> require_expected(audits)                                  # silent: nothing leaks more than is claimed

| audits                               | verdict                                                              |
| ------------------------------------ | -------------------------------------------------------------------- |
| one, its bound above its claim       | PrivacyError: with a planted fault as without, the claim is refuted  |
| all                                  | PrivacyError when the healthy engine is flagged or a fault is missed |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich import box
from rich.table import Table

from fedmed.errors import PrivacyError
from fedmed.models.base import load_base
from fedmed.privacy.random import SecureRandom
from fedmed.training.audit import AuditResult, audit
from fedmed.training.audit_faults import FAULTS, HEALTHY
from fedmed.training.audited_site import AuditSetting

ENGINES = {"healthy": HEALTHY, **FAULTS}


def run_audits(
    names: Sequence[str], repetitions: int, on_repetition: Callable[[], object] = bool
) -> Iterator[tuple[str, AuditResult]]:
    """One audit of each named engine, on the embedded base model; yields each as it ends.

    Raises:
        PrivacyError: a setting is out of range.
    """
    torch.set_num_threads(1)  # batches are small: a second thread mostly waits, and on a busy machine it spins
    base, random, setting = load_base("fedmed-tiny"), SecureRandom(), AuditSetting(repetitions=repetitions)
    for name in names:
        yield name, audit(base, setting, random, ENGINES[name], on_repetition)


def line(name: str, result: AuditResult) -> str:
    """One audit in one line."""
    verdict = "REFUTED" if result.flagged else "not refuted"
    return (
        f"{name}: claimed {result.claimed_epsilon:.2f}, at least {result.lower_bound:.2f}, {verdict} "
        f"({result.seconds:.0f} s)"
    )


def table(audits: Mapping[str, AuditResult]) -> Table:
    """A line for each engine, within 80 columns."""
    first = next(iter(audits.values()))
    shown = Table(
        box=box.SIMPLE,
        caption=f"epsilon at delta {first.delta:g}: claimed, and at least so much at {first.confidence:.0%} confidence, "
        "being the better of two lower bounds: of any mechanism, and of one with Gaussian noise; "
        f"right guesses of {first.coins} coins",
    )
    for heading in ("engine", "claimed", "at least", "any", "Gaussian", "right", "verdict"):
        shown.add_column(heading, justify="left" if heading in ("engine", "verdict") else "right", no_wrap=True)
    for name, result in audits.items():
        bounds = (result.claimed_epsilon, result.lower_bound, result.any_mechanism, result.if_gaussian)
        verdict = "REFUTED" if result.flagged else "not refuted"
        shown.add_row(name, *(f"{bound:.2f}" for bound in bounds), f"{result.right_of_all:.1%}", verdict)
    return shown


def as_rows(audits: Mapping[str, AuditResult]) -> list[dict[str, Any]]:
    """For JSON: every field of each result, its name, what was wrong, and the verdict."""
    return [
        {
            "engine": name,
            "about": ENGINES[name].about,
            **asdict(result),
            "lower_bound": result.lower_bound,
            "flagged": result.flagged,
        }
        for name, result in audits.items()
    ]


def require_expected(audits: Mapping[str, AuditResult]) -> None:
    """Raises PrivacyError as the table above says."""
    flagged = [name for name, result in audits.items() if result.flagged]
    missed = [name for name in audits if name not in flagged and name in FAULTS]
    if "healthy" in flagged or (len(audits) == 1 and flagged):
        result = audits[flagged[0]]
        raise PrivacyError(
            f"{ENGINES[flagged[0]].about}: epsilon is at least {result.lower_bound:.2f}, "
            f"claimed are {result.claimed_epsilon:.2f}",
            "train nothing with an engine that gives away more than it claims; `make test` names the broken property",
        )
    if len(audits) > 1 and missed:
        raise PrivacyError(
            f"planted faults that this audit did not find: {', '.join(missed)}", "give it more --repetitions"
        )
