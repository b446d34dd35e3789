"""Plans a run's privacy. In: all but one of epsilon, noise, rounds, steps, sample rate; out: the whole plan. Pure.

    Question (one value None) + what a cohort has spent -> Plan

    >>> plan = make_plan(Question(epsilon=4.0, delta=1e-5, rounds=5, local_steps=10, sample_rate=0.1))
    >>> plan.solved_for, plan.run.noise_multiplier
    ('noise_multiplier', 1.145)
    >>> [round(item.epsilon, 2) for item in plan.rounds if item.round in (1, 5, 6)]
    [2.17, 4.0, 4.34]

| part of the plan      | what it is                                                                                |
| --------------------- | ----------------------------------------------------------------------------------------- |
| a cap, max_patients   | accounted with `patients` as the public upper bound (fedmed.privacy.events)               |
| evaluation counts     | one release a round with metrics_noise_multiplier, part of epsilon                        |
| what a cohort spent   | composed with the plan, at the cohort's delta; epsilons do not just add up                |
| beyond the end        | what a few more rounds would cost                                                         |
| every plan            | passes the second accountant, with the cohort's events too where they are given           |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedmed.errors import PrivacyError
from fedmed.privacy.accounting import CrossCheck, PrivacyEvent, cross_check, epsilon, epsilons
from fedmed.privacy.calibration import largest_count, largest_rate, smallest_noise
from fedmed.privacy.question import Question, complete, unknown

# So many items beyond the planned end, a tenth of the rounds apart.
_FURTHER = 3
# More rounds than this are listed every n-th.
_LISTED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What every site is asked to do. `num_patients`: public upper bound, with a cap alone; else 0."""

    noise_multiplier: float
    rounds: int
    local_steps: int
    sample_rate: float
    metrics_noise_multiplier: float = 0.0
    max_patients: int = 0
    num_patients: int = 0

    def training(self, rounds: int) -> list[PrivacyEvent]:
        """The noisy steps of so many rounds."""
        steps = rounds * self.local_steps
        return [PrivacyEvent(self.noise_multiplier, self.sample_rate, steps, self.max_patients, self.num_patients)]

    def counts(self, rounds: int) -> list[PrivacyEvent]:
        """The evaluation counts of so many rounds."""
        noise = self.metrics_noise_multiplier
        return [PrivacyEvent(noise, self.sample_rate, rounds)] if noise else []

    def events(self, rounds: int | None = None) -> list[PrivacyEvent]:
        """All that so many rounds, or the whole run, charge."""
        rounds = self.rounds if rounds is None else rounds
        return [*self.training(rounds), *self.counts(rounds)]


@dataclass(frozen=True, slots=True)
class Spent:
    """What a cohort's ledger holds: its events, and the policy that its budget is of."""

    cohort: str
    events: tuple[PrivacyEvent, ...]
    delta: float
    budget: float


@dataclass(frozen=True, slots=True)
class RoundCost:
    """After `round` rounds: epsilon of the run, what each round since the item before added to it, and the cohort's total
    where its ledger is known."""

    round: int
    epsilon: float
    adds: float
    total: float | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """How the plan adds to a cohort's ledger, at the ledger's delta. `rounds_fit`: rounds of this kind that the budget takes."""

    cohort: str
    delta: float
    budget: float
    spent: float
    total: float
    rounds_fit: int
    check: CrossCheck | None

    @property
    def fits(self) -> bool:
        return self.total <= self.budget


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What the federated evaluation costs patients who are not trained on: one release of them all, at `delta`.

    `total`, `budget`: of their cohort with it, at the ledger's delta; None where the ledger is not known.
    """

    cohort: str
    noise_multiplier: float
    epsilon: float
    delta: float
    total: float | None = None
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A run's privacy, whole. `training_epsilon`, `metrics_epsilon`: of the two parts, each on its own.

    `held_out`: what comes beside it, for other patients; None without a federated evaluation.
    """

    run: Run
    solved_for: str
    epsilon: float
    delta: float
    delta_by_rule: bool
    patients: int | None
    training_epsilon: float
    metrics_epsilon: float
    rounds: tuple[RoundCost, ...]
    check: CrossCheck
    ledger: Ledger | None
    warnings: tuple[str, ...]
    held_out: HeldOut | None = None


def make_plan(question: Question, spent: Spent | None = None) -> Plan:
    """The plan that answers the question.

    Raises:
        ConfigError: not exactly one unknown, or a value out of range; every problem at once.
        PrivacyError: no value of the unknown stays within epsilon, or the accountants disagree.
    """
    delta_by_rule = question.delta is None
    question = complete(question)
    delta, solved_for = question.delta or 0.0, unknown(question)
    run = _solve(question, solved_for, delta)
    total = epsilon(run.events(), delta)
    check = cross_check(run.events(), delta)
    return Plan(
        run=run,
        solved_for=solved_for,
        epsilon=total,
        delta=delta,
        delta_by_rule=delta_by_rule,
        patients=question.patients,
        training_epsilon=epsilon(run.training(run.rounds), delta),
        metrics_epsilon=epsilon(run.counts(run.rounds), delta),
        rounds=_round_costs(run, delta, spent),
        check=check,
        ledger=_ledger(run, spent) if spent else None,
        warnings=tuple(_warnings(question, delta, spent)),
    )


def _solve(question: Question, solved_for: str, delta: float) -> Run:
    """The run with its unknown found; any run whose unknown is epsilon."""
    guess = Run(
        noise_multiplier=question.noise_multiplier or 1.0,
        rounds=question.rounds or 1,
        local_steps=question.local_steps or 1,
        sample_rate=question.sample_rate or 1.0,
        metrics_noise_multiplier=question.metrics_noise_multiplier,
        max_patients=question.max_patients,
        num_patients=(question.patients or 0) if question.max_patients else 0,
    )
    if question.epsilon is None:
        return guess

    def events(value: float) -> Sequence[PrivacyEvent]:
        return _with(guess, solved_for, value).events()

    target = question.epsilon
    if solved_for == "noise_multiplier":
        return _with(guess, solved_for, smallest_noise(events, target, delta))
    if solved_for == "sample_rate":
        most = min(1.0, guess.max_patients / guess.num_patients) if guess.max_patients else 1.0
        return _with(guess, solved_for, largest_rate(events, target, delta, most))
    count = largest_count(events, target, delta)
    if not count:
        raise PrivacyError(
            f"epsilon={target:g} does not allow {solved_for}=1: that would cost {epsilon(events(1), delta):.4g}",
            "take more noise, a smaller sample_rate or a larger epsilon",
        )
    return _with(guess, solved_for, count)


def _with(run: Run, name: str, value: float) -> Run:
    whole = name in ("rounds", "local_steps")
    changed: dict[str, Any] = {name: int(value) if whole else value}
    return dataclasses.replace(run, **changed)


def _round_costs(run: Run, delta: float, spent: Spent | None) -> tuple[RoundCost, ...]:
    every, end = math.ceil(run.rounds / _LISTED), run.rounds
    stride = math.ceil(end / 10)
    listed = sorted({*range(every, end, every), end, *range(end + stride, end + stride * _FURTHER + 1, stride)})
    alone = epsilons(run.events(1), listed, delta)
    totals: list[float | None] = [None] * len(listed)
    if spent:
        totals = [*epsilons(run.events(1), listed, spent.delta, before=spent.events)]
    before = [(0, 0.0), *zip(listed, alone, strict=True)]
    return tuple(
        RoundCost(number, after, (after - previous) / (number - last), total)
        for number, after, total, (last, previous) in zip(listed, alone, totals, before[:-1], strict=True)
    )


def _ledger(run: Run, spent: Spent) -> Ledger:
    already = epsilon(spent.events, spent.delta)
    together = [*spent.events, *run.events()]
    total = epsilon(together, spent.delta)
    fit = 0
    if already < spent.budget:
        fit = largest_count(lambda count: [*spent.events, *run.events(int(count))], spent.budget, spent.delta)
    check = cross_check(together, spent.delta) if math.isfinite(total) else None
    return Ledger(spent.cohort, spent.delta, spent.budget, already, total, fit, check)


def _warnings(question: Question, delta: float, spent: Spent | None) -> list[str]:
    warnings = []
    if question.patients and delta >= 1 / question.patients:
        warnings.append(
            f"delta {delta:g} is not below 1/patients = {1 / question.patients:.2g}: it would allow to publish a patient"
        )
    if spent and delta > spent.delta:
        warnings.append(f"delta {delta:g} is above {spent.delta:g}, which the site's policy allows: it would refuse")
    return warnings
