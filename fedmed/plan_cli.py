"""What `fedmed privacy plan` and `fedmed-site plan` share: their options, and how an experiment completes them.

    options (None: not given) + experiment's values -> Question -> Plan -> text or JSON

    >>> given = Given(epsilon=4.0, noise=1.2, local_steps=10, sample_rate=0.1, delta=1e-5)
    >>> ask(given, None, "").rounds is None
    True

| an experiment and an option     | what holds                                                                       |
| ------------------------------- | -------------------------------------------------------------------------------- |
| both have a value               | the option wins                                                                  |
| noise_multiplier 0 in the file  | the noise is what is looked for, as in a run                                     |
| nothing would be left unknown   | epsilon is what is looked for, unless an option gives it: then ConfigError       |
| a ledger, and no delta          | the ledger's, which its budget is of                                             |
| --solve-for                     | names what is looked for; the experiment's value of it is left aside             |
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from fedmed.config import Experiment
from fedmed.errors import ConfigError
from fedmed.privacy.plan_text import plan_json, plan_lines
from fedmed.privacy.planning import Plan
from fedmed.privacy.question import UNKNOWNS, Question

Epsilon = Annotated[float | None, typer.Option("--epsilon", help="what the run may cost a patient")]
Noise = Annotated[float | None, typer.Option("--noise", help="noise_multiplier: standard deviation / clipping norm")]
Rounds = Annotated[int | None, typer.Option("--rounds", help="of the whole run")]
LocalSteps = Annotated[int | None, typer.Option("--local-steps", help="noisy steps at each site in a round")]
SampleRate = Annotated[
    float | None, typer.Option("--sample-rate", help="probability that a patient is drawn in a step")
]
Patients = Annotated[int | None, typer.Option("--patients", help="of the site: a public number, as with a cap")]
ExpectedPatients = Annotated[float | None, typer.Option("--expected-patients", help="drawn in a step, on average")]
Delta = Annotated[float | None, typer.Option("--delta", help="default: 10 times below 1/patients, a power of ten")]
MetricsNoise = Annotated[float | None, typer.Option("--metrics-noise", help="of a round's evaluation counts; 0: none")]
MaxPatients = Annotated[int | None, typer.Option("--max-patients", help="cap on the patients of a step; 0: none")]
SolveFor = Annotated[str, typer.Option("--solve-for", help="epsilon, noise, rounds, local-steps or sample-rate")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object instead of text")]

_OPTIONS = dict(zip(("epsilon", "noise", "rounds", "local-steps", "sample-rate"), UNKNOWNS, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The options of the command line; None where one was not given."""

    epsilon: float | None = None
    noise: float | None = None
    rounds: int | None = None
    local_steps: int | None = None
    sample_rate: float | None = None
    patients: int | None = None
    expected_patients: float | None = None
    delta: float | None = None
    metrics_noise: float | None = None
    max_patients: int | None = None

    @property
    def values(self) -> dict[str, Any]:
        """By the names of Question."""
        names = {"noise": "noise_multiplier", "metrics_noise": "metrics_noise_multiplier"}
        found = {names.get(key, key): value for key, value in dataclasses.asdict(self).items()}
        return {key: value for key, value in found.items() if value is not None}


def ask(given: Given, experiment: Experiment | None, solve_for: str, delta: float | None = None) -> Question:
    """The question that options and experiment make together; `delta` stands in where neither gives one.

    Raises:
        ConfigError: --solve-for is no unknown, or names what an option gives.
    """
    options = given.values
    values = _of_experiment(experiment) if experiment else {}
    if "expected_patients" in options:
        values.pop("sample_rate", None)
    values |= options
    if solve_for:
        values.pop(_wanted(solve_for, options), None)
    elif "epsilon" not in options and not _missing(values, but="epsilon"):
        values.pop("epsilon", None)
    if delta is not None:
        values.setdefault("delta", delta)
    return Question(**values)


def show(plan: Plan, as_json: bool, echo: Callable[[str], None] = typer.echo) -> None:
    """Prints the plan."""
    echo(json.dumps(plan_json(plan)) if as_json else "\n".join(plan_lines(plan)))


def _wanted(solve_for: str, options: dict[str, Any]) -> str:
    if solve_for not in _OPTIONS:
        raise ConfigError([f"--solve-for {solve_for}: expected one of {', '.join(_OPTIONS)}"])
    if _OPTIONS[solve_for] in options:
        raise ConfigError([f"--solve-for {solve_for}: and --{solve_for} gives it"], "leave one of the two out")
    return _OPTIONS[solve_for]


def _missing(values: dict[str, Any], but: str) -> list[str]:
    known = {*values, "sample_rate"} if "expected_patients" in values else values
    return [name for name in UNKNOWNS if name not in known and name != but]


def _rounds(experiment: Experiment) -> dict[str, int]:
    """Rounds and steps. Stages whose rounds have another number of steps are so many rounds of one step: they cost the same,
    but for the counts, of which there is one a round."""
    each = {stage.training.local_steps for stage in experiment.plan.values()}
    if len(each) == 1:
        return {"rounds": experiment.rounds, "local_steps": each.pop()}
    if experiment.privacy.metrics_noise_multiplier:
        raise ConfigError(
            [
                f"training.local_steps: the stages have {sorted(each)}, expected one number to plan evaluation counts with"
            ],
            "plan with --rounds and --local-steps, or without privacy.metrics_noise_multiplier",
        )
    return {"rounds": experiment.steps, "local_steps": 1}


def _of_experiment(experiment: Experiment) -> dict[str, Any]:
    privacy = experiment.privacy
    if privacy.mode != "dp":
        raise ConfigError([f"privacy.mode={privacy.mode!r}: expected dp, there is nothing to plan without privacy"])
    return {
        **(
            {"noise_multiplier": privacy.noise_multiplier} if privacy.noise_multiplier else {"epsilon": privacy.epsilon}
        ),
        **({"patients": privacy.site_patients} if privacy.site_patients else {}),
        "delta": privacy.delta,
        "sample_rate": privacy.sample_rate,
        **_rounds(experiment),
        "metrics_noise_multiplier": privacy.metrics_noise_multiplier,
        "max_patients": privacy.max_patients,
    }
