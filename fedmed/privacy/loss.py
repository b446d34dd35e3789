"""Privacy loss distributions of noisy steps. In: events; out: one distribution that gives epsilon at any delta. Pure.

    PrivacyEvent -> distribution of one step -> composed `steps` times -> composed over events -> epsilon at delta

    >>> loss = compose([PrivacyEvent(1.0, 0.0256, 800)], width=1e-3)
    >>> round(loss.get_epsilon_for_delta(1e-5), 2)
    4.57

The distributions are Google's dp_accounting's (Doroshenko et al., arXiv 2207.04380). A loss is rounded to buckets so that
the result never falls below the true epsilon. `width` chooses the buckets:

| bucket width              | why                                                                                     |
| ------------------------- | --------------------------------------------------------------------------------------- |
| 1e-3 as a rule            | overstates epsilon by 0.001 to 0.005                                                    |
| finer for faint steps     | a step whose loss is far below one bucket would count as a whole one: 10 times too much |
| wider for nearly no noise | losses in the hundreds; memory and time stay bounded, epsilon is overstated             |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from fedmed.errors import PrivacyError
from fedmed.privacy.events import PrivacyEvent

_WIDTH = 1e-3
# A bucket is at most this share of the standard deviation of a step's loss.
_SHARE = 0.2
_MAX_STEP_BUCKETS = 2**17
_MAX_BUCKETS = 2**22
_FINEST = _WIDTH / 128  # below, the distribution's mass is off by rounding
_MAX_STEPS = 10**7
_STAGE = 4096
# Gaussian noise beyond so many deviations has a mass of 1e-17, below any delta.
_TAIL = 8.6


def compose(events: Sequence[PrivacyEvent], width: float) -> Any:
    """The distribution of all events together (dp_accounting's PrivacyLossDistribution). At least one event, each with noise.

    Raises:
        PrivacyError: more steps than can be composed.
    """
    total = None
    for event in events:
        part = _steps(event, width)
        total = part if total is None else total.compose(part)
    return total


def width(events: Sequence[PrivacyEvent]) -> float:
    """Bucket width that suits all events together: 1e-3 times a power of two, so that equal steps share a cache."""
    steps = sum(event.steps for event in events)
    if steps > _MAX_STEPS:
        raise PrivacyError(f"{steps} noisy steps: expected at most {_MAX_STEPS} in all", "plan fewer rounds or steps")
    variance = sum(event.steps * _variance(event) for event in events)
    largest = max(map(_largest_loss, events))
    finest = max(largest / _MAX_STEP_BUCKETS, (largest + 20 * math.sqrt(variance)) / _MAX_BUCKETS)
    wanted = max(min(_WIDTH, _SHARE * math.sqrt(variance / steps)), _FINEST, finest)
    return _WIDTH * 2.0 ** math.floor(math.log2(wanted / _WIDTH))


def _largest_loss(event: PrivacyEvent) -> float:
    """The loss of a drawn patient at the edge of the noise; a cap doubles what a patient can move."""
    shift = (2 if event.max_patients else 1) / event.noise_multiplier
    full = shift * shift / 2 + _TAIL * shift
    return full + math.log(event.sample_rate) if full > 700 else math.log1p(event.sample_rate * math.expm1(full))


def _variance(event: PrivacyEvent) -> float:
    """About the variance of a step's loss: q^2 (exp(1 / sigma^2) - 1), where the largest loss allows as much."""
    squared = 1 / event.noise_multiplier**2
    usual = event.sample_rate**2 * math.expm1(squared) if squared < 700 else math.inf
    return min(usual, _largest_loss(event) ** 2)


def _steps(event: PrivacyEvent, width: float) -> Any:
    if event.sample_rate == 1 and not event.max_patients:
        # Gaussians compose exactly: the sum of n is one with the noise divided by sqrt(n).
        return _gaussian(event.noise_multiplier / math.sqrt(event.steps), 1.0, width)
    step = _step(event.noise_multiplier, event.sample_rate, event.max_patients, event.num_patients, width)
    return repeat(step, event.steps)


def repeat(step: Any, count: int) -> Any:
    """`step` composed `count` times. Many are composed in two stages: the tails of the first bound memory in the second."""
    if count <= _STAGE:
        return step.self_compose(count)
    whole = step.self_compose(_STAGE).self_compose(count // _STAGE)
    return whole.compose(step.self_compose(count % _STAGE)) if count % _STAGE else whole


@lru_cache(maxsize=64)
def _step(noise: float, rate: float, max_patients: int, num_patients: int, width: float) -> Any:
    if not max_patients:
        return _gaussian(noise, rate, width)
    from dp_accounting.pld import privacy_loss_distribution as pld

    return pld.from_truncated_subsampled_gaussian_mechanism(num_patients, rate, max_patients, noise, width)


def _gaussian(noise: float, rate: float, width: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld  # 1.5 s to import, and not every user accounts

    return pld.from_gaussian_mechanism(noise, value_discretization_interval=width, sampling_prob=rate)
