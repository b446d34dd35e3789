"""A plan finds what is asked for, round by round, and adds up with what a cohort has spent."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from fedmed.errors import ConfigError, PrivacyError
from fedmed.privacy.accounting import PrivacyEvent, epsilon, epsilons
from fedmed.privacy.plan_text import plan_json, plan_lines
from fedmed.privacy.planning import Plan, Question, Spent, make_plan
from fedmed.privacy.question import UNKNOWNS, complete, delta_rule

DELTA = 1e-5
KNOWN: dict[str, Any] = {"noise_multiplier": 3.0, "rounds": 4, "local_steps": 5, "sample_rate": 0.1, "delta": DELTA}
EPSILON = epsilon([PrivacyEvent(3.0, 0.1, 20)], DELTA)
SPENT = Spent("north", (PrivacyEvent(4.0, 0.1, 30), PrivacyEvent(3.0, 0.05, 40)), DELTA, budget=1.2)


def plan(spent: Spent | None = None, **values: Any) -> Plan:
    return make_plan(Question(**values), spent)


@pytest.mark.parametrize("name", [name for name in UNKNOWNS if name != "epsilon"])
def test_what_epsilon_was_made_of_is_found_back(name: str) -> None:
    known = {key: value for key, value in KNOWN.items() if key != name}
    found = plan(epsilon=EPSILON, **known)
    assert found.solved_for == name
    assert getattr(found.run, name) == KNOWN[name]
    assert found.epsilon == pytest.approx(EPSILON, abs=1e-9)


def test_epsilon_is_the_accountings_own_and_is_cross_checked() -> None:
    found = plan(**KNOWN)
    assert (found.solved_for, found.epsilon) == ("epsilon", EPSILON)
    assert found.check.pld == EPSILON and found.check.difference < 0.02


def test_each_round_costs_more_in_all_and_less_than_the_one_before_beyond_the_end_too() -> None:
    found = plan(**KNOWN)
    assert [item.round for item in found.rounds] == [1, 2, 3, 4, 5, 6, 7]
    for item in found.rounds:
        assert item.epsilon == pytest.approx(epsilon(found.run.events(item.round), DELTA), abs=1e-6)
    adds = [item.adds for item in found.rounds]
    assert adds == sorted(adds, reverse=True) and adds[-1] > 0
    assert sum(adds[:4]) == pytest.approx(found.epsilon)


def test_many_rounds_are_listed_every_few_with_the_end_and_the_cost_of_one() -> None:
    found = plan(**{**KNOWN, "rounds": 250, "noise_multiplier": 20.0, "local_steps": 1})
    numbers = [item.round for item in found.rounds]
    assert len(numbers) < 110 and 250 in numbers and numbers[-1] == 325
    last = found.rounds[-1]
    alone = epsilon(found.run.events(325), DELTA) - epsilon(found.run.events(300), DELTA)
    assert last.adds == pytest.approx(alone / 25, rel=1e-3)


def test_a_curve_is_what_each_point_is_alone() -> None:
    events, before = [PrivacyEvent(3.0, 0.1, 5), PrivacyEvent(6.0, 0.1, 1)], [PrivacyEvent(4.0, 1.0, 1)]
    curve = epsilons(events, [1, 4, 5], DELTA, before)
    assert curve == pytest.approx([epsilon([*before, *events * count], DELTA) for count in (1, 4, 5)], abs=1e-6)
    assert epsilons([], [1, 2], DELTA, before) == [epsilon(before, DELTA)] * 2
    assert epsilons([PrivacyEvent(0.0, 0.1, 1)], [1, 2], DELTA) == [math.inf] * 2


def test_with_a_ledger_the_total_is_joint_and_below_the_sum() -> None:
    found = plan(SPENT, **KNOWN)
    ledger = found.ledger
    assert ledger is not None
    assert ledger.spent == epsilon(SPENT.events, DELTA)
    assert ledger.total == epsilon([*SPENT.events, PrivacyEvent(3.0, 0.1, 20)], DELTA)
    assert max(ledger.spent, found.epsilon) < ledger.total < ledger.spent + found.epsilon
    assert ledger.fits and found.rounds[3].total == pytest.approx(ledger.total, abs=1e-6)
    fit = [epsilon([*SPENT.events, *found.run.events(ledger.rounds_fit + more)], DELTA) for more in (0, 1)]
    assert fit[0] <= SPENT.budget < fit[1]


def test_a_plan_that_does_not_fit_says_so() -> None:
    tight = dataclasses.replace(SPENT, budget=0.85)
    found = plan(tight, **KNOWN)
    assert found.ledger is not None and not found.ledger.fits and found.ledger.rounds_fit < 4
    assert "DOES NOT FIT" in "\n".join(plan_lines(found))


def test_a_cohort_without_privacy_fits_nothing_and_json_stays_finite() -> None:
    open_cohort = Spent("north", (PrivacyEvent(0.0, 0.1, 5),), DELTA, 8.0)
    found = plan(open_cohort, **KNOWN)
    assert found.ledger is not None and (found.ledger.total, found.ledger.rounds_fit) == (math.inf, 0)
    body = json.loads(json.dumps(plan_json(found), allow_nan=False))
    assert (body["ledger"]["total"], body["ledger"]["fits"], body["rounds"][0]["total"]) == (-1.0, False, -1.0)
    assert "without privacy" in "\n".join(plan_lines(found))


def test_evaluation_counts_are_part_of_epsilon_one_release_a_round() -> None:
    found = plan(**KNOWN, metrics_noise_multiplier=4.0)
    assert found.epsilon == epsilon([PrivacyEvent(3.0, 0.1, 20), PrivacyEvent(4.0, 0.1, 4)], DELTA)
    assert found.training_epsilon == EPSILON < found.epsilon < EPSILON + found.metrics_epsilon
    assert found.metrics_epsilon == epsilon([PrivacyEvent(4.0, 0.1, 4)], DELTA)


def test_a_cap_counts_with_the_public_number_of_patients() -> None:
    found = plan(**KNOWN, patients=200, max_patients=24)
    assert found.epsilon == epsilon([PrivacyEvent(3.0, 0.1, 20, 24, 200)], DELTA)
    assert found.epsilon > found.check.pld == EPSILON  # PRV checks the steps without the cap


def test_the_rate_of_a_capped_run_stays_where_the_cap_is_accounted_for() -> None:
    known = {key: value for key, value in KNOWN.items() if key != "sample_rate"}
    found = plan(epsilon=100.0, **known, patients=100, max_patients=20)
    assert found.run.sample_rate <= 0.2


def test_the_rate_and_the_delta_follow_from_the_patients() -> None:
    found = plan(epsilon=1.0, rounds=4, local_steps=5, patients=1800, expected_patients=180)
    assert (found.run.sample_rate, found.delta, found.delta_by_rule) == (0.1, 1e-5, True)
    assert [delta_rule(count) for count in (1, 10, 11, 1000, 1001)] == [0.1, 1e-2, 1e-3, 1e-4, 1e-5]
    assert all(delta_rule(count) <= 0.1 / count for count in range(1, 3000))


def test_a_delta_that_would_publish_a_patient_is_noted() -> None:
    assert "not below 1/patients" in plan(**{**KNOWN, "delta": 1e-2}, patients=100).warnings[0]
    assert "would refuse" in plan(SPENT, **{**KNOWN, "delta": 1e-4}).warnings[0]


def test_not_even_one_round_is_an_error_that_names_its_cost() -> None:
    with pytest.raises(PrivacyError, match=r"epsilon=0.2 does not allow rounds=1: that would cost \d"):
        plan(epsilon=0.2, **{key: value for key, value in KNOWN.items() if key != "rounds"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, "nothing is left to find"),
        ({"rounds": None, "local_steps": None, "epsilon": None}, "3 values are unknown.*epsilon, rounds, local_steps"),
        ({"epsilon": None, "delta": None}, "delta: missing"),
        ({"epsilon": None, "delta": 1.0}, "delta=1"),
        ({"epsilon": None, "sample_rate": 1.5}, "sample_rate=1.5"),
        ({"epsilon": None, "rounds": 0}, "rounds=0"),
        ({"epsilon": None, "noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"epsilon": -1.0, "rounds": None}, "epsilon=-1"),
        ({"epsilon": None, "metrics_noise_multiplier": -1.0}, "metrics_noise_multiplier=-1"),
        ({"epsilon": None, "max_patients": 10}, "max_patients=10: expected with patients"),
        ({"epsilon": None, "expected_patients": 10.0}, "expected_patients=10: expected with patients"),
        (
            {"sample_rate": None, "epsilon": None, "patients": 5, "expected_patients": 9.0},
            "expected at most patients=5",
        ),
    ],
)
def test_questions_without_one_answer_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        complete(Question(**{**KNOWN, "epsilon": EPSILON, **change}))
    assert "--noise" in caught.value.hint


def test_the_text_holds_the_answer_the_check_and_every_row() -> None:
    lines = plan_lines(plan(SPENT, **KNOWN, metrics_noise_multiplier=8.0, patients=300))
    text = "\n".join(lines)
    assert lines[0].startswith("4 rounds x 5 steps with noise_multiplier 3 at sample_rate 0.1: epsilon ")
    for part in (
        "30 of 300 patients",
        "evaluation counts",
        "PRV at most",
        "the planned end",
        "beyond the plan",
        "fits, ",
    ):
        assert part in text
