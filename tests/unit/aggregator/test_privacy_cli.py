"""`fedmed privacy plan` as its user sees it: the answer, the ledger's share, the plot, and every mistake in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aggregator.cli import app
from aggregator.privacy.spent import read_spent
from fedmed.errors import ConfigError, FedMedError
from fedmed.privacy.accounting import PrivacyEvent, epsilon

KNOWN = ["--rounds", "3", "--local-steps", "4", "--sample-rate", "0.1", "--delta", "1e-5"]


def fedmed(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-m", "aggregator.cli", "privacy", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["privacy", "plan", *map(str, arguments)])


def planned(*arguments: str | Path) -> Any:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


@pytest.fixture
def spent(tmp_path: Path) -> Path:
    event = {"noise_multiplier": 2.0, "sample_rate": 0.1, "steps": 30, "max_patients": 0, "num_patients": 0}
    cohorts = [{"cohort": "north", "events": [event]}, {"cohort": "old", "events": [event, event]}]
    path = tmp_path / "north.json"
    path.write_text(json.dumps({"cohort": "north", "delta": 1e-5, "budget": 4.0, "cohorts": cohorts}))
    return path


def test_a_user_gets_json_with_the_ledgers_share(spent: Path) -> None:
    done = fedmed(*KNOWN, "--noise", "3", "--spent", str(spent), "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    alone, before = PrivacyEvent(3.0, 0.1, 12), PrivacyEvent(2.0, 0.1, 30)
    assert plan["epsilon"] == epsilon([alone], 1e-5)
    assert plan["ledger"]["total"] == epsilon([alone, before], 1e-5)
    assert (plan["ledger"]["fits"], plan["accountants"]["difference"] < 0.05) == (True, True)


def test_a_mistake_is_told_in_words_with_a_code(tmp_path: Path) -> None:
    done = fedmed(*KNOWN)
    assert done.returncode == 2 and done.stdout == ""
    assert "2 values are unknown, and only one can be found: epsilon, noise_multiplier" in done.stderr
    assert "hint: give all but one" in done.stderr and "Traceback" not in done.stderr


def test_an_experiment_gives_what_no_option_does() -> None:
    plan = planned("demo", "--noise", "2")
    assert (plan["solved_for"], plan["run"]["rounds"], plan["run"]["sample_rate"]) == ("epsilon", 5, 0.04)
    longer = planned("demo", "--rounds", "2", "--epsilon", "1.5")
    assert (longer["solved_for"], longer["run"]["rounds"]) == ("noise_multiplier", 2)
    assert longer["epsilon"] <= 1.5
    rounds = planned("demo", "--noise", "1.2", "--epsilon", "2", "--solve-for", "rounds")
    assert rounds["solved_for"] == "rounds" and rounds["epsilon"] <= 2
    rate = planned("demo", "--noise", "2", "--patients", "300", "--expected-patients", "30")
    assert (rate["solved_for"], rate["run"]["sample_rate"]) == ("epsilon", 0.1)


@pytest.fixture
def asking(tmp_path: Path) -> Path:
    """An experiment that asks the held-out patients once."""
    path = tmp_path / "asking.yaml"
    path.write_text("name: asking\nevaluation:\n  federated: true\n  epsilon: 0.8\n")
    return path


def test_held_out_patients_have_a_line_of_their_own_beside_the_run(asking: Path, spent: Path) -> None:
    alone, plan = planned("demo", "--noise", "2"), planned(asking, "--noise", "2")
    held_out = plan["held_out"]
    assert alone["held_out"] is None
    assert held_out["epsilon"] == epsilon([PrivacyEvent(held_out["noise_multiplier"], 1.0, 1)], plan["delta"]) <= 0.8
    assert (held_out["cohort"], held_out["delta"], held_out["total"]) == ("COHORT.held_out", plan["delta"], None)
    other = planned(asking, "--noise", "2", "--delta", "1e-6")["held_out"]
    assert other["delta"] == 1e-6 and other["noise_multiplier"] > held_out["noise_multiplier"]
    text = invoke(asking, "--noise", "2", "--spent", spent).stdout
    (line,) = (line for line in text.splitlines() if "held-out patients" in line)
    assert f"cohort north.held_out, asked once at the end: noise {held_out['noise_multiplier']:g}, epsilon 0." in line
    assert "lose nothing by it" in line and "held-out" not in invoke("demo", "--noise", "2").stdout


@pytest.mark.parametrize(("name", "head"), [("plan.svg", b"<?xml"), ("plan.png", b"\x89PNG")])
def test_the_plot_is_a_picture_of_the_kind_that_its_name_says(
    spent: Path, tmp_path: Path, name: str, head: bytes
) -> None:
    plot = tmp_path / name
    result = invoke(*KNOWN, "--noise", "3", "--spent", spent, "--plot", plot)
    assert "fits, " in result.stdout
    assert plot.read_bytes().startswith(head) and plot.stat().st_size > 5000


def test_the_present_cohort_is_taken_unless_another_is_named(spent: Path) -> None:
    assert read_spent(spent).events == (PrivacyEvent(2.0, 0.1, 30),)
    assert read_spent(spent, "old").events == (PrivacyEvent(2.0, 0.1, 60),)
    with pytest.raises(ConfigError, match="--cohort south: not in the file, which has north, old"):
        read_spent(spent, "south")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "5 values are unknown"),
        ([], "delta: missing"),
        ([*KNOWN, "--noise", "1", "--epsilon", "2"], "nothing is left to find"),
        (["demo", "--noise", "1", "--epsilon", "2"], "nothing is left to find"),
        (["demo", "--noise", "1", "--solve-for", "noise"], "--solve-for noise: and --noise gives it"),
        (["demo", "--solve-for", "everything"], "expected one of epsilon, noise, rounds, local-steps, sample-rate"),
        (["demo", "--noise", "-1"], "noise_multiplier=-1"),
        (["demo", "--expected-patients", "9"], "expected_patients=9: expected with patients"),
        (["demo", "--max-patients", "9"], "max_patients=9: expected with patients"),
        (["demo", "--noise", "2", "--max-patients", "9", "--patients", "300"], "expected at least 12"),
        (["demo", "--spent", "nosuch.json"], "nosuch.json: No such file"),
        (["demo", "--plot", "plan.pdf"], "ends in .png or .svg"),
        (["demo", "--plot", "nosuch/plan.png"], "the folder does not exist"),
        (["nosuch"], "experiment 'nosuch'"),
    ],
)
def test_every_mistake_is_named(arguments: list[str], expected: str) -> None:
    error = invoke(*arguments).exception
    assert isinstance(error, FedMedError), error
    assert expected in error.message


@pytest.mark.parametrize(
    "text", ["not json", "[]", "{}", '{"cohort": "a", "cohorts": [{"cohort": "a"}]}', '{"cohorts": 3}']
)
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="not") as caught:
        read_spent(path)
    assert "fedmed-site budget" in caught.value.hint
