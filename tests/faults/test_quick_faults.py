"""The cases of the fault suite that take less than 5 s, and the suite itself: a wrong or missing fact must fail a case."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from tests.faults.__main__ import as_dict, as_markdown, as_text, chosen, write_section
from tests.faults.all_cases import CASES
from tests.faults.case import Case, Facts, run_case
from tests.faults.lab import Lab, fill

QUICK = [item for item in CASES if item.quick]


@pytest.mark.parametrize("item", QUICK, ids=lambda item: item.name.replace(" ", "-"))
def test_quick_fault(item: Case) -> None:
    assert os.geteuid() == 0, "the fault suite mounts disks and makes network namespaces: run the tests as root"
    with Lab() as lab:
        outcome = run_case(item, lab)
    assert outcome.passed, f"expected: {item.expects}\nseen: {outcome.seen}"


def made(facts: Facts, limit_s: float = 60.0) -> Case:
    def make(lab: Lab) -> Facts:
        if "raise" in facts:
            raise OSError("no such disk")
        if "sleep" in facts:
            time.sleep(30)
        return facts

    return Case(99, "", "a fault", "exit {exit}, {reserved} reserved", {"exit": 5, "reserved": 1}, make, True, limit_s)


@pytest.mark.parametrize(
    ("facts", "seen"),
    [
        ({"exit": 0, "reserved": 1}, "exit 0, 1 reserved"),
        ({"exit": "5", "reserved": 1}, "exit 5, 1 reserved"),  # a text is not a number, however it looks
        ({"exit": 5}, "no word of reserved; found {'exit': 5}"),
        ({"exit": 5, "reserved": 1, "lost": 2}, "exit 5, 1 reserved (and {'lost': 2}, not asked for)"),
        ({"raise": True}, "could not run: OSError: no such disk"),
    ],
)
def test_what_differs_fails(facts: Facts, seen: str) -> None:
    with Lab() as lab:
        outcome = run_case(made(facts), lab)
    assert (outcome.passed, outcome.seen.partition(" (test_quick")[0]) == (False, seen)


def test_a_case_that_takes_too_long_fails() -> None:
    with Lab() as lab:
        outcome = run_case(made({"sleep": True}, limit_s=0.2), lab)
    assert not outcome.passed and "not done after 0.2 s" in outcome.seen and outcome.seconds < 20


def test_a_case_is_shown_with_what_was_expected_and_seen() -> None:
    with Lab() as lab:
        good, bad = (run_case(made({"exit": code, "reserved": 1}), lab) for code in (5, 6))
    assert good.passed and not bad.passed
    assert "exit 5, 1 reserved" in as_text(bad) and "exit 6, 1 reserved" in as_text(bad) and "FAILED" in as_text(bad)
    assert (as_dict(bad)["expected"], as_dict(bad)["passed"]) == ("exit 5, 1 reserved", False)


def test_the_table_replaces_the_one_before_it_and_nothing_else(tmp_path: Path) -> None:
    with Lab() as lab:
        good, bad = (run_case(made({"exit": code, "reserved": 1}), lab) for code in (5, 6))
    path, ended = tmp_path / "faults.md", datetime(2031, 2, 3, 4, 5, tzinfo=UTC)
    path.write_text("# Faults\n\nWritten by hand.\n")
    for outcomes in ([good, bad], [good]):
        write_section(path, as_markdown(outcomes, "python -m tests.faults --only 99", ended))
        text = path.read_text()
        assert text.startswith("# Faults\n\nWritten by hand.\n\n## Every case, as it was seen\n\nMade by `python -m")
        assert "`python -m tests.faults --only 99`, which ended on 2031-02-03 at 04:05 UTC." in text
        assert ("**failed:** exit 6, 1 reserved" in text) == (bad in outcomes)
        assert text.count("| 99 | a fault | exit 5, 1 reserved | the same | 0 |") == 1
        assert text.endswith(f"\n    faults: 1 passed, {len(outcomes) - 1} failed\n")


def test_cases_are_chosen_by_number() -> None:
    assert {item.number for item in chosen("3,8", quick=False)} == {3, 8}
    assert all(item.quick for item in chosen("", quick=True))
    with pytest.raises(SystemExit, match="there is no case 98"):
        chosen("98", quick=False)


def test_a_lab_leaves_nothing() -> None:
    with Lab() as lab:
        root = lab.root
        disk, other, network = lab.tmpfs("small", "64k"), lab.ext4("loop", 2), lab.namespace()
        fill(disk)
        process = lab.start("sleeper", ["sleep", "600"]).process
        mounts = Path("/proc/mounts").read_text()
        assert str(disk) in mounts and str(other) in mounts
        assert network in os.listdir("/var/run/netns")
    assert not root.exists()
    assert str(root) not in Path("/proc/mounts").read_text()
    assert network not in os.listdir("/var/run/netns")
    assert not psutil.pid_exists(process.pid)
