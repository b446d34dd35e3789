"""What a sequence of noisy steps costs. In: events; out: epsilon. Pure, and free of torch.

    >>> events = [PrivacyEvent(noise_multiplier=1.0, sample_rate=0.0256, steps=800)]
    >>> round(epsilon(events, delta=1e-5), 2)
    4.57

A step draws each patient with probability `sample_rate` on its own (Poisson), bounds each drawn patient's contribution to
an L2 norm of C, and adds Gaussian noise of standard deviation `noise_multiplier * C` to the sum: the Poisson-subsampled
Gaussian mechanism. `epsilon` composes such steps with privacy loss distributions (PLD, Google's dp_accounting); the
discretisation is pessimistic, so the value is an upper bound. `plan_noise` checks its answer against a second
implementation (Opacus' PRV accountant, Gopi et al., arXiv 2106.02848).

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

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fedmed.errors import PrivacyError

# Width of a PLD bucket. Rounding is upwards: a wider bucket only overstates epsilon (by 0.001 to 0.005 here).
_FINE = 1e-3
_COARSE = 5e-3
# noise_multiplier is planned in units of 1e-3 and looked for up to this bound.
_RESOLUTION = 1000
_MAX_NOISE = 10_000.0
# The accountants may differ by this share of epsilon before a plan is refused.
_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class PrivacyEvent:
    """`steps` noisy steps with the same noise and sampling.

    Attributes:
        noise_multiplier: noise standard deviation / clipping norm, >= 0.
        sample_rate: probability that a patient is drawn in a step, in [0, 1].
        steps: number of steps, >= 0; empty draws count.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int


def epsilon(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Epsilon of all events together, at `delta`. See the table above for the edge cases.

    Raises:
        PrivacyError: a value is outside its range.
    """
    _check_delta(delta)
    grouped = group_events(events)
    if not grouped:
        return 0.0
    if delta == 0 or any(event.noise_multiplier == 0 for event in grouped):
        return math.inf
    return _pld_epsilon(grouped, delta, _FINE)


def group_events(events: Sequence[PrivacyEvent]) -> tuple[PrivacyEvent, ...]:
    """Events with equal noise and rate added up, those that cost nothing left out; sorted, so that it caches."""
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        _check_event(event)
        if event.steps and event.sample_rate:
            key = (event.noise_multiplier, event.sample_rate)
            steps[key] = steps.get(key, 0) + event.steps
    return tuple(PrivacyEvent(noise, rate, count) for (noise, rate), count in sorted(steps.items()))


def plan_noise(target_epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The smallest noise_multiplier, rounded up to 0.001, with which `steps` steps stay within `target_epsilon`.

    Raises:
        PrivacyError: no finite noise reaches the target, a value is out of range, or the two accountants differ by
            more than 5 % of epsilon.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise PrivacyError(f"target epsilon={target_epsilon}: expected > 0 and finite")
    _check_delta(delta)
    if delta == 0:
        raise PrivacyError("delta=0: expected > 0", "Gaussian noise gives no guarantee with delta 0; take 1e-5")
    return _plan_noise(target_epsilon, delta, sample_rate, steps)


@lru_cache(maxsize=256)
def _plan_noise(target: float, delta: float, sample_rate: float, steps: int) -> float:
    if not group_events([PrivacyEvent(1.0, sample_rate, steps)]):
        return 0.0

    def fits(milli: int, interval: float) -> bool:
        return _pld_epsilon((PrivacyEvent(milli / _RESOLUTION, sample_rate, steps),), delta, interval) <= target

    low, high = _bracket(lambda milli: fits(milli, _COARSE), target)
    coarse = _smallest(lambda milli: fits(milli, _COARSE), low, high)
    # Wide buckets overstate epsilon, so the exact answer lies a little below: stride down, then bisect what is left.
    high, stride = coarse, 2
    while high > stride and fits(high - stride, _FINE):
        high, stride = high - stride, 2 * stride
    best = _smallest(lambda milli: fits(milli, _FINE), max(0, high - stride), high) / _RESOLUTION
    _cross_check(PrivacyEvent(best, sample_rate, steps), delta)
    return best


def _bracket(fits: Callable[[int], bool], target: float) -> tuple[int, int]:
    """Noise (in thousandths) that is too little, and noise that is enough."""
    high = _RESOLUTION
    while not fits(high):
        high *= 2
        if high > _MAX_NOISE * _RESOLUTION:
            raise PrivacyError(
                f"epsilon={target:g} is not reached with noise_multiplier up to {_MAX_NOISE:g}",
                "take fewer steps or rounds, a smaller sample_rate, or a larger epsilon",
            )
    low = high // 2
    while low > _RESOLUTION // 20 and fits(low):
        low, high = low // 2, low
    return (0 if fits(low) else low), high


def _smallest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest value in (low, high] that fits, given that `high` does."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


@lru_cache(maxsize=1024)
def _pld_epsilon(events: tuple[PrivacyEvent, ...], delta: float, interval: float) -> float:
    import dp_accounting  # 1.5 s to import, and not every user of this module accounts
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
    for event in events:
        gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        step = dp_accounting.PoissonSampledDpEvent(event.sample_rate, gaussian) if event.sample_rate < 1 else gaussian
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, event.steps))
    return float(accountant.get_epsilon(delta))


def _cross_check(event: PrivacyEvent, delta: float) -> None:
    """Refuses when the PRV accountant sees another epsilon."""
    ours = _pld_epsilon((event,), delta, _FINE)
    theirs = _prv_epsilon(event, delta, error=min(0.01, ours / 100))
    if not abs(ours - theirs) <= _TOLERANCE * max(ours, theirs):
        raise PrivacyError(
            f"the accountants disagree at {event}: epsilon {ours:.4f} by PLD, {theirs:.4f} by PRV",
            "take a sample_rate and a number of steps in the usual range, or report this as a bug",
        )


def _prv_epsilon(event: PrivacyEvent, delta: float, error: float) -> float:
    from opacus.accountants import PRVAccountant  # imports torch, which this module must not

    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sample_rate, event.steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log(0) at sample_rate 1, and hints about RDP orders that size its domain
        return float(accountant.get_epsilon(delta, eps_error=error))


def _check_delta(delta: float) -> None:
    if not 0 <= delta < 1:
        raise PrivacyError(f"delta={delta}: expected 0 <= delta < 1")


def _check_event(event: PrivacyEvent) -> None:
    if not (math.isfinite(event.noise_multiplier) and event.noise_multiplier >= 0):
        raise PrivacyError(f"noise_multiplier={event.noise_multiplier}: expected >= 0 and finite")
    if not 0 <= event.sample_rate <= 1:
        raise PrivacyError(f"sample_rate={event.sample_rate}: expected 0 <= sample_rate <= 1")
    if event.steps < 0:
        raise PrivacyError(f"steps={event.steps}: expected >= 0")
