"""`python -m tests.faults`: every case, a table as they end, and `faults: N passed, M failed`; status 1 when any failed.

--only 3,7     cases of these numbers          --quick     those of less than 5 s
--json         one JSON object a case, then one with the counts
--markdown FILE    the table too, under a heading of its own: what FILE holds above that heading stays, what is below is replaced
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.all_cases import CASES
from tests.faults.case import Case, Outcome, run_case
from tests.faults.lab import Lab

COMMAND = "python -m tests.faults"
HEADING = "## Every case, as it was seen"
WIDTH = 110


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", default="", help="numbers, such as 3,7")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("error: the fault suite mounts disks and makes network namespaces\n  hint: run it as root")
    outcomes = []
    for item in chosen(arguments.only, arguments.quick):
        with Lab() as lab:
            outcomes.append(run_case(item, lab))
        print(json.dumps(as_dict(outcomes[-1])) if arguments.json else as_text(outcomes[-1]), flush=True)
    counts = count(outcomes)
    print(json.dumps(counts) if arguments.json else last_line(outcomes), flush=True)
    if arguments.markdown:
        command = " ".join([COMMAND, *sys.argv[1:]])
        write_section(arguments.markdown, as_markdown(outcomes, command, datetime.now(UTC)))
    sys.exit(1 if counts["failed"] or not outcomes else 0)


def chosen(only: str, quick: bool) -> list[Case]:
    """The cases in the order of their numbers; exits for a number that is not there."""
    numbers = {int(word) for word in only.split(",") if word}
    if unknown := numbers - {item.number for item in CASES}:
        sys.exit(f"error: there is no case {sorted(unknown)[0]}\n  hint: docs/faults.md lists them")
    found = [item for item in CASES if (not numbers or item.number in numbers) and (item.quick or not quick)]
    return sorted(found, key=lambda item: item.number)


def count(outcomes: Sequence[Outcome]) -> dict[str, int]:
    failed = sum(not outcome.passed for outcome in outcomes)
    return {"passed": len(outcomes) - failed, "failed": failed}


def last_line(outcomes: Sequence[Outcome]) -> str:
    return "faults: {passed} passed, {failed} failed".format(**count(outcomes))


def as_text(outcome: Outcome) -> str:
    """Three paragraphs, as wide as a terminal: case, expected, seen."""
    item, word = outcome.case, "passed" if outcome.passed else "FAILED"
    rows = [("expected", item.expects), ("seen", outcome.seen)]
    lines = [f"{item.name:16} {item.fault}"]
    for name, text in rows:
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {name:9} ", subsequent_indent=" " * 12)
    return "\n".join([*lines, f"  {word} in {outcome.seconds:.1f} s"])


def as_dict(outcome: Outcome) -> dict[str, object]:
    item = outcome.case
    return {
        "case": item.name,
        "fault": item.fault,
        "expected": item.expects,
        "seen": outcome.seen,
        "passed": outcome.passed,
        "seconds": round(outcome.seconds, 1),
        "command": f"{COMMAND} --only {item.number}",
    }


def as_markdown(outcomes: Sequence[Outcome], command: str, ended: datetime) -> str:
    """The section of docs/faults.md: heading, command and date, a row for each case, the last line of the output."""
    rows = ["| case | fault | expected | seen | s |", "| --- | --- | --- | --- | ---: |"]
    for outcome in outcomes:
        item = outcome.case
        seen = "the same" if outcome.passed else f"**failed:** {outcome.seen}"
        cells = [item.name, item.fault, item.expects, seen, f"{outcome.seconds:.0f}"]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    made = f"Made by `{command}`, which ended on {ended:%Y-%m-%d at %H:%M} UTC. The last column is in seconds."
    return "\n".join([HEADING, "", made, "", *rows, "", f"    {last_line(outcomes)}"]) + "\n"


def write_section(path: Path, section: str) -> None:
    """Puts the section in the place of an earlier one and of all that follows it, or at the end of the file."""
    head = path.read_text().partition(HEADING)[0].rstrip() if path.exists() else ""
    path.write_text(f"{head}\n\n{section}" if head else section)


if __name__ == "__main__":
    main()
