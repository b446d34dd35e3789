"""How well a site's held-out patients were answered, with noise. In: each patient's scores; out: a few noisy sums. Pure.

    per patient: of each score its mean m and weight w, both in [0, 1] -> (w (m - 1/2), ..., w / 2, ...)
    -> summed over patients -> noise -> NoisyScores
    NoisyScores of every site -> told -> the weighted mean of m, and its standard error

    >>> from fedmed.privacy.random import InsecureSeededRandom
    >>> patients = [PatientScores({"exact_match": 1.0}, {"all": 1.0}), PatientScores({"exact_match": 0.5}, {"all": 1.0})]
    >>> noisy_scores(("exact_match",), patients, 0.0, InsecureSeededRandom(0))
    NoisyScores(sums=(1.5,), weights=(2.0,))

Scores of the same items share one weight: SCORES names the group of each. The weight is 1 for a patient that has such items,
and 0 for one that has none; of findings it is how many of them there are, as fedmed.training.held_out says.

| case                    | what holds                                                                                    |
| ----------------------- | --------------------------------------------------------------------------------------------- |
| guarantee               | all patients take part: one call is one Gaussian event, PrivacyEvent(noise_multiplier, 1, 1), |
|                         | for adding or removing a patient with all its records                                         |
| sensitivity             | one patient adds numbers of at most 1/2, one a score and one a group: in L2 at most           |
|                         | sqrt(scores + groups) / 2, jointly. Numbers are bounded one by one, and as a vector once more |
| why the shift and halves | the mean is 1/2 + sum(w (m - 1/2)) / sum(w): with w / 2 instead of w its error is smaller at   |
|                         | every m, by 1.25 to 1.6 times with one score a group; without the shift it is larger still    |
| a patient twice         | is one patient: whoever calls gives one PatientScores a patient                               |
| no patient, no items    | noise alone                                                                                   |
| how many there are      | is private too, and leaves as a noisy weight                                                  |
| noise_multiplier 0      | the sums themselves: no privacy                                                               |
| low bits                | with noise, numbers leave rounded to 3 digits after the point, which is post-processing       |
| a value out of [0, 1]   | PrivacyError; NaN too; never its value                                                        |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedmed.errors import PrivacyError

if TYPE_CHECKING:  # imports torch, and the aggregator and the ledger's side of a site read scores without it
    from fedmed.privacy.random import RandomSource

# Score -> the group of items that have it. Names as in fedmed.metrics.
SCORES: Mapping[str, str] = {
    "exact_match": "all",
    "closed_accuracy": "closed",
    "open_recall": "open",
    "open_f1": "open",
    "choice_accuracy": "choice",
    "finding_f1": "findings",
}
_DIGITS = 3
# Below so many standard deviations of its own noise a weight says nothing, and nothing is divided by it.
_LEAST_WEIGHT = 3.0
# Honest noise leaves so many standard deviations once in 10^23 releases.
_ABSURD = 10.0


@dataclass(frozen=True, slots=True)
class PatientScores:
    """One patient's: `values` by score, `weights` by group; what is missing has weight 0."""

    values: Mapping[str, float] = field(repr=False)
    weights: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True, slots=True)
class NoisyScores:
    """What one evaluation may say: for each score the sum of w m, for each group the sum of w; each may be negative."""

    sums: tuple[float, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """One score over some sites' patients: `value` in [0, 1] and `error`, its standard error from the noise alone.

    None where the weight is below three standard deviations of its noise: too few to tell. `weight`: patients with such items.
    """

    value: float | None
    error: float | None
    weight: float


def groups_of(scores: Sequence[str]) -> tuple[str, ...]:
    """The groups of these scores, each once, in the order in which they come."""
    return tuple(dict.fromkeys(SCORES[name] for name in scores))


def scores_problem(scores: Sequence[str]) -> str:
    """What is wrong with such a list of scores; "" when nothing is."""
    if not scores or len(set(scores)) != len(scores) or not set(scores) <= set(SCORES):
        return f"scores={list(scores)!r:.120}: expected some of {', '.join(SCORES)}, each once"
    return ""


def sensitivity(scores: Sequence[str]) -> float:
    """L2 norm of the most that one patient adds to the sums."""
    return math.sqrt(len(scores) + len(groups_of(scores))) / 2


def patient_vector(scores: Sequence[str], patient: PatientScores) -> tuple[float, ...]:
    """What one patient adds before noise: a number for each score, then one for each group.

    Raises:
        PrivacyError: a value or a weight is outside [0, 1].
    """
    weights = {group: patient.weights.get(group, 0.0) for group in groups_of(scores)}
    values = [patient.values.get(name, 0.5) for name in scores]
    if not all(0 <= number <= 1 for number in (*values, *weights.values())):
        raise PrivacyError("a patient's score or weight is outside [0, 1]")  # never its value
    leads = [weights[SCORES[name]] * (value - 0.5) for name, value in zip(scores, values, strict=True)]
    vector = (*leads, *(weight / 2 for weight in weights.values()))
    scale = min(1.0, sensitivity(scores) / (math.hypot(*vector) or 1.0))  # below 1 by rounding at most
    return tuple(number * scale for number in vector)


def noisy_scores(
    scores: Sequence[str], patients: Sequence[PatientScores], noise_multiplier: float, random: RandomSource
) -> NoisyScores:
    """The sums over all patients. Noise has standard deviation noise_multiplier * sensitivity(scores) on each of the
    vector's numbers.

    Args:
        patients: of all who take part, one each.
        noise_multiplier: >= 0, as the ledger was charged.
        random: a secure source, except in tests.

    Raises:
        PrivacyError: a value is outside its range.
    """
    if problem := scores_problem(scores):
        raise PrivacyError(problem)
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise PrivacyError(f"noise_multiplier={noise_multiplier}: expected >= 0 and finite")
    groups = groups_of(scores)
    noise = random.normal((len(scores) + len(groups),)).tolist()
    vectors = [patient_vector(scores, patient) for patient in patients]
    columns = zip(*vectors, strict=True) if vectors else [()] * len(noise)
    deviation = noise_multiplier * sensitivity(scores)
    total = [math.fsum(column) + deviation * own for column, own in zip(columns, noise, strict=True)]
    halves = dict(zip(groups, total[len(scores) :], strict=True))
    sums = [lead + halves[SCORES[name]] for name, lead in zip(scores, total, strict=False)]
    weights = [2 * half for half in halves.values()]
    if noise_multiplier:
        sums, weights = ([round(number, _DIGITS) for number in numbers] for numbers in (sums, weights))
    return NoisyScores(tuple(sums), tuple(weights))


def told(scores: Sequence[str], name: str, sites: Sequence[NoisyScores], noise_multiplier: float) -> Told:
    """One score over the patients of all these sites, first order in the noise.

    With l = sum of w (m - 1/2) and n = sum of w over S sites, whose noise has deviation d = noise_multiplier * sensitivity *
    sqrt(S) on l and 2 d on n: value = 1/2 + l / n, error = d * sqrt(1 + (2 l / n)^2) / n.
    """
    place, group = scores.index(name), groups_of(scores).index(SCORES[name])
    weight = math.fsum(site.weights[group] for site in sites)
    deviation = noise_multiplier * sensitivity(scores) * math.sqrt(len(sites))
    if weight <= 0 or weight < _LEAST_WEIGHT * 2 * deviation:
        return Told(None, None, weight)
    lead = math.fsum(site.sums[place] for site in sites) / weight - 0.5
    return Told(min(1.0, max(0.0, 0.5 + lead)), deviation * math.hypot(1.0, 2 * lead) / weight, weight)


def sums_problem(scores: Sequence[str], found: NoisyScores, noise_multiplier: float, most_patients: int) -> str:
    """Why no honest site sends such sums; "" when one may. A sum of scores is between 0 and the weight, but for noise."""
    groups = groups_of(scores)
    if (len(found.sums), len(found.weights)) != (len(scores), len(groups)):
        return f"{len(found.sums)} sums and {len(found.weights)} weights, expected {len(scores)} and {len(groups)}"
    slack = _ABSURD * noise_multiplier * sensitivity(scores) + 10**-_DIGITS
    for name, total in zip(scores, found.sums, strict=True):
        weight = found.weights[groups.index(SCORES[name])]
        if not (-2 * slack <= weight <= most_patients and abs(total - weight / 2) <= weight / 2 + 2 * slack):
            return f"{name}: sum {total:g} of weight {weight:g}, expected 0 to the weight, at most {most_patients}, and noise"
    return ""
