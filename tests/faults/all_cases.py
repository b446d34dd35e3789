"""All cases: importing a module of cases adds them to the table."""

from __future__ import annotations

from tests.faults import (  # noqa: F401
    cases_disk,
    cases_federation,
    cases_held_out,
    cases_joining,
    cases_ledger,
    cases_registry,
    cases_rounds,
    cases_site,
    cases_updates,
    cases_wire,
)
from tests.faults.case import CASES

__all__ = ["CASES"]
