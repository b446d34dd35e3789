"""What a site does to its patients' data, as the accounting sees it: events. Pure; pure Python.

    >>> group_events([PrivacyEvent(1.0, 0.1, 3), PrivacyEvent(1.0, 0.1, 4)])
    (PrivacyEvent(noise_multiplier=1.0, sample_rate=0.1, steps=7, max_patients=0, num_patients=0),)

A step draws each patient with probability `sample_rate` on its own (Poisson), takes a uniformly random `max_patients` of
them where more were drawn, bounds each one's contribution to an L2 norm of C, and adds Gaussian noise of standard
deviation `noise_multiplier * C` to the sum.

| with a cap             | what holds                                                                                 |
| ---------------------- | ------------------------------------------------------------------------------------------ |
| why it costs           | above the cap one more patient pushes another one out: the sum moves by 2 C, not by C      |
| num_patients           | a PUBLIC upper bound of the patients there are, one being added included: the exact count  |
|                        | is private, and how often the cap bites depends on it                                      |
| a larger bound         | is pessimistic while sample_rate * num_patients <= max_patients: per step, the divergence  |
|                        | at every epsilon grows with the bound (tests/unit/privacy/test_truncated.py)               |
| a cap below that       | PrivacyError: there a larger bound can be optimistic, since patients dilute each other     |
| cap >= num_patients    | never bites: the ordinary step                                                             |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedmed.errors import PrivacyError


@dataclass(frozen=True, slots=True, order=True)
class PrivacyEvent:
    """`steps` noisy steps with the same noise and sampling.

    Attributes:
        noise_multiplier: noise standard deviation / clipping norm, >= 0.
        sample_rate: probability that a patient is drawn in a step, in [0, 1].
        steps: number of steps, >= 0; empty draws count.
        max_patients: at most so many drawn patients take part in a step; 0 is no cap.
        num_patients: public upper bound of the patients; needed with a cap, and of no effect without.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    max_patients: int = 0
    num_patients: int = 0


def group_events(events: Sequence[PrivacyEvent]) -> tuple[PrivacyEvent, ...]:
    """Equal events added up, those that cost nothing left out; sorted, so that it caches.

    Raises:
        PrivacyError: a value is outside its range.
    """
    steps: dict[PrivacyEvent, int] = {}
    for event in events:
        check_event(event)
        if event.steps and event.sample_rate:
            key = dataclasses.replace(_simplest(event), steps=0)
            steps[key] = steps.get(key, 0) + event.steps
    return tuple(dataclasses.replace(key, steps=count) for key, count in sorted(steps.items()))


def _simplest(event: PrivacyEvent) -> PrivacyEvent:
    """Without a cap that never bites."""
    bites = 0 < event.max_patients < event.num_patients
    return event if bites else dataclasses.replace(event, max_patients=0, num_patients=0)


def check_event(event: PrivacyEvent) -> None:
    """Raises PrivacyError for a value outside its range, naming it."""
    if not (math.isfinite(event.noise_multiplier) and event.noise_multiplier >= 0):
        raise PrivacyError(f"noise_multiplier={event.noise_multiplier}: expected >= 0 and finite")
    if not 0 <= event.sample_rate <= 1:
        raise PrivacyError(f"sample_rate={event.sample_rate}: expected 0 <= sample_rate <= 1")
    if event.steps < 0:
        raise PrivacyError(f"steps={event.steps}: expected >= 0")
    if event.max_patients < 0 or event.num_patients < 0:
        raise PrivacyError(
            f"max_patients={event.max_patients}, num_patients={event.num_patients}: expected >= 0 (0 is no cap)"
        )
    if event.max_patients:
        check_cap(event.max_patients, event.sample_rate, event.num_patients)


def check_cap(max_patients: int, sample_rate: float, num_patients: int) -> None:
    """Raises PrivacyError for a cap that cannot be accounted for: no public bound, or below the expected draw."""
    if not num_patients:
        raise PrivacyError(
            f"max_patients={max_patients} without num_patients: expected a public upper bound of the patients",
            "without such a bound what the cap costs is unknown: take no cap (0)",
        )
    if max_patients < (least := least_cap(sample_rate, num_patients)):
        raise PrivacyError(
            f"max_patients={max_patients}: expected at least {least}, the patients drawn on average when sample_rate="
            f"{sample_rate:g} and num_patients={num_patients}",
            "raise the cap or lower the sample_rate; half as much again costs next to nothing",
        )


def least_cap(sample_rate: float, num_patients: int) -> int:
    """The smallest cap that can be accounted for: the patients drawn on average, rounded up."""
    return math.ceil(sample_rate * num_patients - 1e-9)
