"""A plan as people and programs read it. In: a Plan; out: lines of text, or plain JSON types. Pure.

    >>> from fedmed.privacy.planning import Question, make_plan
    >>> plan = make_plan(Question(noise_multiplier=1.2, delta=1e-5, rounds=1, local_steps=10, sample_rate=0.1))
    >>> print(plan_lines(plan)[0])
    1 round x 10 steps with noise_multiplier 1.2 at sample_rate 0.1: epsilon 1.975, delta 1e-05, per patient

Infinity (a cohort that was trained on without privacy) is -1 in JSON, as on the wire.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from fedmed.privacy.planning import HeldOut, Ledger, Plan, RoundCost

_NAMES = {"noise_multiplier": "noise", "local_steps": "steps a round", "sample_rate": "sample rate"}
# Rows of a long table: the first ones, the last ones, and some between.
_ROWS = 24


def plan_json(plan: Plan) -> dict[str, Any]:
    """Every value of the plan. Epsilons at `delta`; those of `ledger` and the rounds' `total` at the ledger's delta."""
    body = dataclasses.asdict(plan)
    body["accountants"] = {**body.pop("check"), "difference": plan.check.difference}
    if plan.ledger:
        body["ledger"]["fits"] = plan.ledger.fits
        del body["ledger"]["check"]
    found: dict[str, Any] = _finite(body)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return -1.0 if value == math.inf else value


def plan_lines(plan: Plan) -> list[str]:
    """The plan as a person reads it: the answer, what it rests on, the cost of each round, the cohort's ledger."""
    return [_answer(plan), "", *_details(plan), "", *_table(plan), *_verdict(plan.ledger), *_warnings(plan)]


def _answer(plan: Plan) -> str:
    run = plan.run
    return (
        f"{_count(run.rounds, 'round')} x {_count(run.local_steps, 'step')} with noise_multiplier "
        f"{run.noise_multiplier:g} at sample_rate {run.sample_rate:.4g}: epsilon {plan.epsilon:.4g}, delta "
        f"{plan.delta:g}, per patient"
    )


def _details(plan: Plan) -> list[str]:
    run, check = plan.run, plan.check
    rows = [("found", _NAMES.get(plan.solved_for, plan.solved_for))]
    if plan.patients:
        rows.append(("a step draws", f"{run.sample_rate * plan.patients:.4g} of {plan.patients} patients on average"))
    if plan.delta_by_rule:
        rows.append(("delta", f"{plan.delta:g}: the largest power of ten that is at most 1 / (10 x patients)"))
    if run.max_patients:
        rows.append(("cap", f"{run.max_patients} patients a step, truncated Poisson sampling of {run.num_patients}"))
    if run.metrics_noise_multiplier:
        rows.append(
            (
                "evaluation counts",
                f"noise {run.metrics_noise_multiplier:g}: epsilon {plan.metrics_epsilon:.3g} alone, "
                f"{plan.epsilon - plan.training_epsilon:.3g} on top of the training's {plan.training_epsilon:.4g}",
            )
        )
    if plan.held_out:
        rows.append(("held-out patients", _held_out(plan.held_out)))
    scope = "without the cap, " if run.max_patients else ""
    rows.append(
        ("cross-check", f"{scope}PLD {check.pld:.4g}, PRV at most {check.prv:.4g}: {check.difference:.1%} apart")
    )
    return [f"  {name:18} {text}" for name, text in rows]


def _held_out(asked: HeldOut) -> str:
    """Of the federated evaluation, which is no part of the run's epsilon."""
    text = (
        f"cohort {asked.cohort}, asked once at the end: noise {asked.noise_multiplier:g}, epsilon {asked.epsilon:.4g}, "
        f"delta {asked.delta:g}; patients who are trained on lose nothing by it"
    )
    if asked.total is None or asked.budget is None:
        return text
    verdict = "fits" if asked.total <= asked.budget else "DOES NOT FIT"
    return f"{text}; with it {_epsilon(asked.total)} of {asked.budget:g}: {verdict}"


def _table(plan: Plan) -> list[str]:
    ledger = plan.ledger
    lines = [f"  {'round':>5}  {'epsilon':>8}  {'adds':>8}" + (f"  {'cohort':>8}" if ledger else "")]
    for cost in _shown(plan):
        if cost is None:
            lines.append(f"  {'...':>5}")
            continue
        total = "" if cost.total is None else f"  {_epsilon(cost.total):>8}"
        lines.append(
            f"  {cost.round:>5}  {cost.epsilon:>8.3f}  {'+' + format(cost.adds, '.3f'):>8}{total}{_mark(plan, cost)}"
        )
    return lines


def _mark(plan: Plan, cost: RoundCost) -> str:
    marks = []
    if cost.round == plan.run.rounds:
        marks.append("the planned end")
    if cost.round > plan.run.rounds:
        marks.append("beyond the plan")
    if plan.ledger and cost.total is not None and not cost.total <= plan.ledger.budget:
        marks.append("above the budget")
    return "  " + ", ".join(marks) if marks else ""


def _shown(plan: Plan) -> list[RoundCost | None]:
    """The rows of the table; None where rows are left out."""
    costs = plan.rounds
    if len(costs) <= _ROWS:
        return [*costs]
    end = next(index for index, cost in enumerate(costs) if cost.round == plan.run.rounds)
    every = math.ceil(end / 10)
    keep = sorted({0, 1, 2, *range(every - 1, end, every), *range(end - 1, len(costs))})
    rows: list[RoundCost | None] = []
    for index in keep:
        if rows and index - 1 not in keep:
            rows.append(None)
        rows.append(costs[index])
    return rows


def _verdict(ledger: Ledger | None) -> list[str]:
    if ledger is None:
        return []
    if math.isinf(ledger.spent):
        return ["", f"  cohort {ledger.cohort}: was trained on without privacy; no plan fits any budget"]
    left = ledger.budget - ledger.total
    verdict = f"fits, {left:.3f} left" if ledger.fits else f"DOES NOT FIT, {-left:.3f} too much"
    return [
        "",
        f"  cohort {ledger.cohort}: spent {ledger.spent:.3f} of {ledger.budget:g} at delta {ledger.delta:g}; "
        f"with this plan {ledger.total:.3f}: {verdict}",
        f"  at most {_count(ledger.rounds_fit, 'round')} of this kind would fit"
        if ledger.rounds_fit
        else "  not one round fits",
    ]


def _warnings(plan: Plan) -> list[str]:
    return ["", *(f"  note: {text}" for text in plan.warnings)] if plan.warnings else []


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _epsilon(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.3f}"
