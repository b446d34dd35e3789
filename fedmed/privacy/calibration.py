"""Finds the value that keeps a run within an epsilon. In: a target and how a value becomes events; out: the value. Pure.

    >>> plan_noise(target_epsilon=4.57, delta=1e-5, sample_rate=0.0256, steps=800)
    1.001

Epsilon falls with noise and rises with steps and sample rate, so each is found between two values that
are known to be too little and too much, and rounded to the safe side:

| looked for       | what comes back                                                             |
| ---------------- | --------------------------------------------------------------------------- |
| noise_multiplier | the smallest, rounded up to 0.001                                           |
| rounds, steps    | the largest whole number; 0 when not even one fits                          |
| sample_rate      | the largest, rounded down to three digits                                   |
| out of reach     | PrivacyError: no noise up to 10000, or no rate down to 1e-9, is enough      |
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

from fedmed.errors import PrivacyError
from fedmed.privacy.accounting import PrivacyEvent, check_delta, cross_check, epsilon

# noise_multiplier is planned in units of 1e-3 and looked for up to this bound.
_RESOLUTION = 1000
_MAX_NOISE = 10_000
# A noise at which epsilon is in the hundreds: less is not looked at.
_MIN_NOISE = 0.05
_RATES = 8101
_MOST = 10**6

EventsOf = Callable[[float], Sequence[PrivacyEvent]]


def plan_noise(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    *,
    max_patients: int = 0,
    num_patients: int = 0,
    others: Sequence[PrivacyEvent] = (),
) -> float:
    """The smallest noise_multiplier with which `steps` steps, together with `others`, stay within `target_epsilon`.

    Args:
        max_patients, num_patients: cap on the patients of a step, see PrivacyEvent.
        others: what is charged beside these steps, such as the evaluation's noisy counts.

    Raises:
        PrivacyError: no finite noise reaches the target, a value is out of range, or the two accountants differ by
            more than 5 % of epsilon.
    """

    def events(noise: float) -> Sequence[PrivacyEvent]:
        return [*others, PrivacyEvent(noise, sample_rate, steps, max_patients, num_patients)]

    noise = smallest_noise(events, target_epsilon, delta)
    if noise:
        cross_check(events(noise), delta)
    return noise


def smallest_noise(events: EventsOf, target: float, delta: float) -> float:
    """The smallest noise, rounded up to 0.001, whose events stay within `target`; 0.0 where none is needed.

    Raises:
        PrivacyError: no noise up to 10000 is enough, or a value is out of range.
    """
    check_target(target, delta)

    def excess(milli: int) -> float:
        return _excess(events(milli / _RESOLUTION), target, delta)

    if excess(0) <= 0:
        return 0.0
    if excess(_MAX_NOISE * _RESOLUTION) > 0:
        raise PrivacyError(
            f"epsilon={target:g} is not reached with noise_multiplier up to {_MAX_NOISE}: at that it is still "
            f"{epsilon(events(_MAX_NOISE), delta):.3g}",
            "take fewer steps or rounds, a smaller sample_rate, more noise for the evaluation counts, or a larger epsilon",
        )
    least = round(_MIN_NOISE * _RESOLUTION)
    high = _RESOLUTION
    while excess(high) > 0:
        high *= 2
    low = high // 2
    while low > least and excess(low) <= 0:
        low, high = low // 2, low
    low = max(low, least)
    return (least if excess(low) <= 0 else _crossing(lambda milli: -excess(milli), low, high)) / _RESOLUTION


def largest_count(events: EventsOf, target: float, delta: float) -> int:
    """The largest number of rounds or steps whose events stay within `target`; 0 when not even one does.

    Raises:
        PrivacyError: a million and more fit, or a value is out of range.
    """
    check_target(target, delta)

    def excess(count: int) -> float:
        return _above(_excess(events(count), target, delta))

    high = 1
    while excess(high) < 0:
        high *= 4
        if high > _MOST:
            raise PrivacyError(
                f"epsilon={target:g} allows more than {_MOST} of them", "take a smaller epsilon or less noise"
            )
    return _crossing(excess, high // 4, high) - 1


def largest_rate(events: EventsOf, target: float, delta: float, most: float = 1.0) -> float:
    """The largest sample_rate up to `most`, rounded down to three digits, whose events stay within `target`.

    Raises:
        PrivacyError: not even 1e-9 does, or a value is out of range.
    """
    check_target(target, delta)
    if _excess(events(most), target, delta) <= 0:
        return most
    if _excess(events(_rate(0)), target, delta) > 0:
        raise PrivacyError(
            f"epsilon={target:g} is not reached with any sample_rate down to {_rate(0):g}",
            "take fewer steps or rounds, more noise, or a larger epsilon",
        )
    high = bisect.bisect_left(range(_RATES), most, key=_rate)
    return _rate(_crossing(lambda index: _above(_excess(events(min(_rate(index), most)), target, delta)), 0, high) - 1)


def _rate(index: int) -> float:
    """The sample rates of three digits in order: 0 is 1.00e-9, the last is 1."""
    return float(f"{100 + index % 900}e{index // 900 - 11}")


def check_target(target: float, delta: float) -> None:
    """Raises PrivacyError for an epsilon or delta that nothing can be planned for."""
    if not (math.isfinite(target) and target > 0):
        raise PrivacyError(f"target epsilon={target}: expected > 0 and finite")
    check_delta(delta)
    if delta == 0:
        raise PrivacyError("delta=0: expected > 0", "Gaussian noise gives no guarantee with delta 0; take 1e-5")


def _excess(events: Sequence[PrivacyEvent], target: float, delta: float) -> float:
    """How far above the target, as a logarithm: at most 0 when it fits."""
    spent = epsilon(events, delta)
    return math.log(spent / target) if spent else -math.inf  # log(inf) is inf


def _above(excess: float) -> float:
    """At least 0 where the target is exceeded: a value that meets it exactly still fits."""
    return math.nextafter(excess, -math.inf)


def _crossing(rising: Callable[[int], float], low: int, high: int) -> int:
    """The smallest value in (low, high] at which a rising function is at least 0, given that it is at `high`, not at `low`.

    The function is nearly a straight line over the logarithm, so the next value to look at is where that line meets 0;
    every third time it is the middle, so that no shape takes long.
    """
    below, above = rising(low), rising(high)
    turn = 0
    while high - low > 1:
        turn += 1
        middle = (low + high) // 2
        if turn % 3 and low and math.isfinite(above - below) and above > below:
            middle = math.ceil(low * (high / low) ** (below / (below - above)))
            middle = min(max(middle, low + 1), high - 1)
        value = rising(middle)
        if value >= 0:
            high, above = middle, value
        else:
            low, below = middle, value
    return high
