"""All cases: importing a module of cases adds them to the table."""

from __future__ import annotations

from tests.faults import cases_disk, cases_ledger, cases_site, cases_updates, cases_wire  # noqa: F401
from tests.faults.case import CASES

__all__ = ["CASES"]
