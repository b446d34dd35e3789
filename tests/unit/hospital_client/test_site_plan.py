"""`fedmed-site plan`: whether a run fits what the site's patients have left, and what its policy would say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.errors import ConfigError
from fedmed.privacy.accounting import PrivacyEvent, epsilon
from hospital_client.cli import app
from hospital_client.ledger import Ledger, Spending
from hospital_client.settings import load_site

RUN = ["--rounds", "3", "--local-steps", "10", "--sample-rate", "0.1"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site of 25 phantom patients that has spent one round with counts."""
    write_manifest(tmp_path / "data", phantom_examples(25, 0, domain="hospital", split="train"))
    settings = ["--set", "policy.epsilon_budget=4", "--set", "policy.min_noise_multiplier=0.9"]
    result = run("init", tmp_path / "north", "--name", "north", "--data", tmp_path / "data", *settings)
    assert result.exit_code == 0, result.exception
    ledger = Ledger(load_site(tmp_path / "north").ledger)
    ledger.reserve(SPENDING, budget=4.0, delta=1e-5, fingerprint="f")
    ledger.close()
    return tmp_path / "north"


SPENDING = Spending("north", "run-1", 1, "a" * 64, 1.5, 0.1, 10, 1e-5, metrics_noise_multiplier=6.0)
HELD = [PrivacyEvent(1.5, 0.1, 10), PrivacyEvent(6.0, 0.1, 1)]


def planned(site: Path, *arguments: str) -> Any:
    result = run("plan", site, *RUN, *arguments, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_the_plan_is_added_to_what_the_ledger_holds(site: Path) -> None:
    plan = planned(site, "--noise", "1.2")
    ledger, event = plan["ledger"], PrivacyEvent(1.2, 0.1, 30)
    assert plan["delta"] == 1e-5  # the policy's
    assert (ledger["cohort"], ledger["budget"], ledger["fits"]) == ("north", 4.0, True)
    assert ledger["spent"] == epsilon(HELD, 1e-5)
    assert ledger["total"] == epsilon([*HELD, event], 1e-5)
    assert ledger["rounds_fit"] >= 3


def test_what_does_not_fit_or_is_not_allowed_is_said(site: Path) -> None:
    text = run("plan", site, *RUN, "--noise", "0.85").stdout
    assert "DOES NOT FIT" in text and "above the budget" in text
    assert "would refuse it: privacy.noise_multiplier=0.85, expected at least 0.9" in text
    notes = planned(site, "--noise", "6", "--max-patients", "9", "--patients", "30")["warnings"]
    assert "max_patients=9, expected 0: the patient count is hidden" in notes[0]


@pytest.fixture
def asking(tmp_path: Path) -> list[str]:
    """A run that asks the held-out patients once."""
    path = tmp_path / "asking.yaml"
    path.write_text("name: asking\nevaluation:\n  federated: true\n  epsilon: 1.0\n")
    return ["--experiment", str(path), "--noise", "1.2"]


def test_held_out_patients_have_their_own_cohort_and_budget(site: Path, asking: list[str], tmp_path: Path) -> None:
    write_manifest(tmp_path / "others", phantom_examples(25, 1, domain="hospital", split="test"))
    text = (site / "site.yaml").read_text()
    assert 'held_out: ""' in text
    (site / "site.yaml").write_text(text.replace('held_out: ""', f"held_out: {tmp_path / 'others'}"))
    first = planned(site, *asking)["held_out"]
    assert (first["cohort"], first["delta"], first["budget"]) == ("north.held_out", 1e-5, 4.0)
    assert first["epsilon"] == first["total"] <= 1.0  # not on top of what the patients have spent who are trained on
    ledger, noise = Ledger(load_site(site).ledger), first["noise_multiplier"]
    asked = Spending("north.held_out", "run-1", 5, "b" * 64, noise, 1.0, 1, 1e-5)
    ledger.reserve(asked, budget=9.0, delta=1e-5, fingerprint="f")
    ledger.close()
    plan = planned(site, *asking)
    assert plan["held_out"]["total"] == epsilon([PrivacyEvent(noise, 1.0, 2)], 1e-5) > first["total"]
    assert plan["ledger"]["spent"] == epsilon(HELD, 1e-5)  # whoever is trained on lost nothing
    shown = run("plan", site, *RUN, *asking).stdout
    assert f"cohort north.held_out, asked once at the end: noise {noise:g}, epsilon {first['epsilon']:.4g}" in shown
    assert f"with it {plan['held_out']['total']:.3f} of 4: fits" in shown


def test_a_site_that_would_not_answer_the_evaluation_says_why(site: Path, asking: list[str]) -> None:
    plan = planned(site, *asking)
    notes = "\n".join(plan["warnings"])
    assert plan["held_out"]["total"] is None
    assert (
        "would refuse the evaluation: an evaluation of held-out patients, expected none (allow_metrics is false)"
        in notes
    )
    assert "would refuse the evaluation: site.yaml names no manifest as held_out" in notes
    assert not any("evaluation" in note for note in planned(site, "--noise", "1.2")["warnings"])


def test_what_the_consortium_may_have_names_no_count_of_patients(site: Path, tmp_path: Path) -> None:
    from aggregator.privacy.spent import read_spent

    result = run("budget", site, "--public")
    report = json.loads(result.stdout)
    assert report["cohorts"][0].keys() == {"cohort", "events"} and "25" not in result.stdout
    path = tmp_path / "north.json"
    for option in ("--public", "--json"):
        path.write_text(run("budget", site, option).stdout)
        found = read_spent(path)
        assert (list(found.events), found.delta, found.budget) == (HELD, 1e-5, 4.0)


def test_a_question_without_one_answer_is_refused(site: Path) -> None:
    error = run("plan", site, *RUN).exception
    assert isinstance(error, ConfigError) and "epsilon, noise_multiplier" in error.message
