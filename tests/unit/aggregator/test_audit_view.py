"""What `fedmed privacy audit` shows, and when it ends in an error."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from aggregator.privacy import privacy_cli
from aggregator.privacy.audit_view import ENGINES, as_rows, line, require_expected, table
from fedmed.errors import PrivacyError
from fedmed.training.audit import AuditResult
from fedmed.training.audit_faults import FAULTS

HOLDS = AuditResult(4.4, 1.9, 2.8, 1e-5, 0.95, 2400, 300, 260, 0.68, 150, 60.0)
REFUTED = replace(HOLDS, if_gaussian=9.5)
ALL_FOUND = {"healthy": HOLDS} | dict.fromkeys(FAULTS, REFUTED)


def test_the_command_knows_every_fault() -> None:
    assert tuple(FAULTS) == privacy_cli.FAULTS
    assert list(ENGINES) == ["healthy", *FAULTS]


@pytest.mark.parametrize("audits", [{"healthy": HOLDS}, {"per_record": HOLDS}, ALL_FOUND])
def test_expected_outcomes_are_silent(audits: dict[str, AuditResult]) -> None:
    require_expected(audits)


@pytest.mark.parametrize(
    ("audits", "says"),
    [
        ({"healthy": REFUTED}, "the engine as it is: epsilon is at least 9.50, claimed are 4.40"),
        ({"per_record": REFUTED}, "clipping per record instead of per patient: epsilon is at least 9.50"),
        (ALL_FOUND | {"healthy": REFUTED}, "the engine as it is"),
        (ALL_FOUND | {"patient_twice": HOLDS}, "did not find: patient_twice"),
    ],
)
def test_a_leak_and_a_missed_fault_are_errors(audits: dict[str, AuditResult], says: str) -> None:
    with pytest.raises(PrivacyError, match=says):
        require_expected(audits)


def test_table_and_json_say_the_same() -> None:
    shown = io.StringIO()
    Console(file=shown, width=80).print(table(ALL_FOUND))
    lines = [line.split() for line in shown.getvalue().splitlines() if "REFUTED" in line or "not refuted" in line]
    rows = json.loads(json.dumps(as_rows(ALL_FOUND)))
    assert [line[0] for line in lines] == [row["engine"] for row in rows]
    assert [line[-1] == "REFUTED" for line in lines] == [row["flagged"] for row in rows]
    assert [float(line[2]) for line in lines] == [round(row["lower_bound"], 2) for row in rows]


def test_a_line_for_whoever_waits() -> None:
    assert line("per_record", REFUTED) == "per_record: claimed 4.40, at least 9.50, REFUTED (60 s)"
