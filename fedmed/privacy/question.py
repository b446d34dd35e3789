"""What is asked of a plan. In: values given on a command line or by an experiment; out: a question with one unknown. Pure.

    >>> question = complete(Question(epsilon=4.0, rounds=5, local_steps=10, patients=1800, expected_patients=180.0))
    >>> unknown(question), question.sample_rate, question.delta
    ('noise_multiplier', 0.1, 1e-05)

| given                          | what follows                                                                      |
| ------------------------------ | --------------------------------------------------------------------------------- |
| patients and expected_patients | sample_rate = expected_patients / patients                                        |
| patients, no delta             | the largest power of ten that is at most 1 / (10 * patients): a delta near        |
|                                | 1 / patients would allow to publish one patient whole                             |
| not exactly one unknown        | ConfigError naming what is missing, or all that is given                          |
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from fedmed.errors import ConfigError

UNKNOWNS = ("epsilon", "noise_multiplier", "rounds", "local_steps", "sample_rate")
_HINT = (
    "give all but one of --epsilon, --noise, --rounds, --local-steps, --sample-rate (or --patients and "
    "--expected-patients); with an experiment, --solve-for names the one to find"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is known of a run; exactly one of UNKNOWNS is None, and comes out. `expected_patients`: of a step."""

    epsilon: float | None = None
    noise_multiplier: float | None = None
    rounds: int | None = None
    local_steps: int | None = None
    sample_rate: float | None = None
    delta: float | None = None
    patients: int | None = None
    expected_patients: float | None = None
    metrics_noise_multiplier: float = 0.0
    max_patients: int = 0


def complete(question: Question) -> Question:
    """With the sample rate and the delta that follow from the patients.

    Raises:
        ConfigError: not exactly one unknown, or values out of range; every problem at once.
    """
    problems = [*_unknown_problems(question), *_range_problems(question), *_patient_problems(question)]
    if problems:
        raise ConfigError(problems, _HINT)
    if question.delta is None:
        question = dataclasses.replace(question, delta=delta_rule(question.patients or 1))
    if question.expected_patients is not None and question.patients is not None:
        question = dataclasses.replace(question, sample_rate=question.expected_patients / question.patients)
    return question


def unknown(question: Question) -> str:
    """The value that is asked for, of a complete question."""
    return next(name for name in UNKNOWNS if getattr(question, name) is None)


def delta_rule(patients: int) -> float:
    """The largest power of ten that is at most 1 / (10 * patients)."""
    return float(f"1e-{math.ceil(math.log10(10 * patients))}")


def _unknown_problems(question: Question) -> list[str]:
    known = {name for name in UNKNOWNS if getattr(question, name) is not None}
    if question.expected_patients is not None:
        known.add("sample_rate")
    missing = [name for name in UNKNOWNS if name not in known]
    if len(missing) == 1:
        return []
    if missing:
        return [f"{len(missing)} values are unknown, and only one can be found: {', '.join(missing)}"]
    return [f"nothing is left to find: {', '.join(UNKNOWNS)} are all given"]


def _range_problems(question: Question) -> list[str]:
    problems = []
    for name in (
        "epsilon",
        "noise_multiplier",
        "rounds",
        "local_steps",
        "sample_rate",
        "patients",
        "expected_patients",
    ):
        value = getattr(question, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            problems.append(f"{name}={value:g}: expected > 0 and finite")
    if question.sample_rate is not None and question.sample_rate > 1:
        problems.append(f"sample_rate={question.sample_rate:g}: expected at most 1")
    if not (question.metrics_noise_multiplier >= 0 and math.isfinite(question.metrics_noise_multiplier)):
        problems.append(f"metrics_noise_multiplier={question.metrics_noise_multiplier:g}: expected >= 0 and finite")
    if question.delta is None and question.patients is None:
        problems.append("delta: missing; give it, or patients, from which it follows")
    if question.delta is not None and not 0 < question.delta < 1:
        problems.append(f"delta={question.delta:g}: expected > 0 and < 1")
    return problems


def _patient_problems(question: Question) -> list[str]:
    problems, patients, expected = [], question.patients, question.expected_patients
    if question.max_patients < 0:
        problems.append(f"max_patients={question.max_patients}: expected >= 0 (0 is no cap)")
    if question.max_patients and patients is None:
        problems.append(f"max_patients={question.max_patients}: expected with patients, the most that any site has")
    if expected is not None and (patients is None or question.sample_rate is not None):
        problems.append(f"expected_patients={expected:g}: expected with patients, and without a sample_rate")
    elif expected is not None and patients is not None and expected > patients:
        problems.append(f"expected_patients={expected:g}: expected at most patients={patients}")
    return problems
