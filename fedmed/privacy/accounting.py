"""What a sequence of noisy steps costs. In: events; out: epsilon. Pure, and free of torch.

    >>> events = [PrivacyEvent(noise_multiplier=1.0, sample_rate=0.0256, steps=800)]
    >>> round(epsilon(events, delta=1e-5), 2)
    4.57

What an event is, with or without a cap on the patients of a step: fedmed/privacy/events.py. `epsilon` composes privacy loss
distributions (PLD, Google's dp_accounting; fedmed/privacy/loss.py), always rounded upwards, so the value is an upper
bound. `cross_check` compares it with a second implementation, Opacus' PRV accountant (Gopi et al., arXiv 2106.02848);
every plan goes through it. PRV knows no cap: it checks what the same steps cost without one, and a cap only adds.

| case                  | what holds                                                                                |
| --------------------- | ----------------------------------------------------------------------------------------- |
| guarantee             | (epsilon, delta)-DP of everything computed from the noisy sums, for one whole patient     |
| neighbouring data     | one patient with all records, images and texts is added or removed                        |
| adversary             | sees every step's noisy sum, all code and settings; not the draws and not the noise       |
| no amplification      | by taking part: server and sites know who trains                                          |
| no steps, or rate 0   | 0.0                                                                                       |
| noise_multiplier 0    | infinity                                                                                  |
| sample_rate 1         | the plain Gaussian mechanism, without amplification                                       |
| delta 0               | infinity: Gaussian noise gives no pure guarantee                                          |
| anything out of range | PrivacyError naming the value                                                             |
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedmed.errors import PrivacyError
from fedmed.privacy import loss
from fedmed.privacy.events import PrivacyEvent, group_events

__all__ = ["CrossCheck", "PrivacyEvent", "check_delta", "cross_check", "epsilon", "epsilons", "group_events"]

# The accountants may differ by this share of epsilon.
_TOLERANCE = 0.05
# PRV is not asked for more points of its grid than this, nor outside this range: its exponentials would overflow, its
# error exceed what it finds.
_MAX_POINTS = 2**24
_LEAST_EPSILON, _MOST_EPSILON = 1e-3, 500.0
_USUAL = "take sample_rate, noise and steps in the usual range; if they are, report this as a bug"


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """Epsilon of the same steps, without a cap, as the two accountants see it."""

    pld: float
    prv: float

    @property
    def difference(self) -> float:
        """As a share of the larger."""
        return abs(self.pld - self.prv) / max(self.pld, self.prv)


def epsilon(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Epsilon of all events together, at `delta`. See the table above for the edge cases.

    Raises:
        PrivacyError: a value is outside its range.
    """
    check_delta(delta)
    grouped = group_events(events)
    if not grouped:
        return 0.0
    if delta == 0 or any(event.noise_multiplier == 0 for event in grouped):
        return math.inf
    return _epsilon(grouped, delta)


@lru_cache(maxsize=1024)
def _epsilon(events: tuple[PrivacyEvent, ...], delta: float) -> float:
    try:
        return float(loss.compose(events, loss.width(events)).get_epsilon_for_delta(delta))
    except (ArithmeticError, MemoryError, ValueError) as fault:
        raise PrivacyError(f"the PLD accountant fails at delta {delta:g} on {_named(events)}", _USUAL) from fault


def epsilons(
    events: Sequence[PrivacyEvent], counts: Sequence[int], delta: float, before: Sequence[PrivacyEvent] = ()
) -> list[float]:
    """Epsilon of `before` and then `events` so many times, for each of the rising `counts`, which are above 0.

    Composed on from count to count, so that a curve costs little more than its end.

    Raises:
        PrivacyError: a value is outside its range.
    """
    check_delta(delta)
    once, start = group_events(events), group_events(before)
    if not once or not counts:
        return [epsilon(before, delta)] * len(counts)
    if delta == 0 or any(event.noise_multiplier == 0 for event in (*once, *start)):
        return [math.inf] * len(counts)
    width = loss.width([*start, *(_times(event, counts[-1]) for event in once)])
    total, done, found = (loss.compose(start, width) if start else None), 0, []
    for count in counts:
        more = loss.compose([_times(event, count - done) for event in once], width)
        total, done = more if total is None else total.compose(more), count
        found.append(float(total.get_epsilon_for_delta(delta)))
    return found


def _times(event: PrivacyEvent, count: int) -> PrivacyEvent:
    return dataclasses.replace(event, steps=event.steps * count)


def check_delta(delta: float) -> None:
    """Raises PrivacyError when `delta` is not in [0, 1)."""
    if not 0 <= delta < 1:
        raise PrivacyError(f"delta={delta}: expected 0 <= delta < 1")


def cross_check(events: Sequence[PrivacyEvent], delta: float) -> CrossCheck:
    """Asks the PRV accountant for the same epsilon. Events with noise, at least one that costs something.

    Raises:
        PrivacyError: they differ by more than 5 %, or PRV cannot be asked.
    """
    plain = group_events([dataclasses.replace(event, max_patients=0, num_patients=0) for event in events])
    ours = epsilon(plain, delta)
    check = CrossCheck(ours, _prv_epsilon(plain, delta, ours))
    if not check.difference <= _TOLERANCE:
        raise PrivacyError(
            f"the accountants disagree: epsilon {check.pld:.4g} by PLD, {check.prv:.4g} by PRV, at delta {delta:g} for "
            f"{_named(plain)}",
            _USUAL,
        )
    return check


def _named(events: Sequence[PrivacyEvent]) -> str:
    return " and ".join(
        f"{event.steps} steps of noise_multiplier={event.noise_multiplier:g}, sample_rate={event.sample_rate:g}"
        for event in events
    )


@lru_cache(maxsize=256)
def _prv_epsilon(events: tuple[PrivacyEvent, ...], delta: float, expected: float) -> float:
    """PRV's upper bound, to 1 % of the `expected` epsilon."""
    error = min(0.05, max(expected, _LEAST_EPSILON) / 100)
    steps = sum(event.steps for event in events)
    points = 2 * (expected + 3) / error * math.sqrt(steps * math.log(12_000 / delta) / 2)
    if points > _MAX_POINTS or not _LEAST_EPSILON <= expected <= _MOST_EPSILON:
        raise PrivacyError(
            f"epsilon {expected:.4g} at delta {delta:g} is out of the PRV accountant's reach, so this cannot be "
            f"checked: {_named(events)}",
            _USUAL,
        )
    from opacus.accountants import PRVAccountant  # imports torch, which this module must not

    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in events]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # log(0) at sample_rate 1, and hints about RDP orders that size its domain
            return float(accountant.get_epsilon(delta, eps_error=error))
    except (ArithmeticError, RuntimeError, ValueError) as fault:
        raise PrivacyError(
            f"the PRV accountant fails on {_named(events)}, so this cannot be checked", _USUAL
        ) from fault
