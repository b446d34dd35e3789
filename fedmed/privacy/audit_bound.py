"""From an auditor's guesses to a lower bound on epsilon. In: guesses right and made; out: epsilon. Pure, free of torch.

The game: a fair coin decides for each canary patient whether it is in the data; the auditor sees what was released and
guesses the coins. No (epsilon, delta)-DP mechanism lets anybody guess too well, so good guesses refute a claim.

    >>> round(epsilon_from_guesses(bits=100, made=100, right=100, delta=0.0, error=0.05), 2)      # 0.97 ** 100 = 0.05
    3.49
    >>> epsilon_from_guesses(bits=100, made=100, right=55, delta=0.0, error=0.05)
    0.0

| bound                | assumes            | from                                                                         |
| -------------------- | ------------------ | ---------------------------------------------------------------------------- |
| epsilon_from_guesses | nothing            | Steinke, Nasr, Jagielski, arXiv 2305.08846, theorem 5.2: given (epsilon,     |
|                      |                    | delta)-DP, the right ones among r guesses (the auditor may abstain) are at   |
|                      |                    | most Binomial(r, 1 / (1 + exp(-epsilon))), up to a term in delta             |
| epsilon_if_gaussian  | Gaussian noise,    | Dong, Roth, Su, arXiv 1905.02383: whoever is mu-GDP lets nobody guess a coin |
|                      | every canary drawn | better than Phi(mu / 2); as Nasr et al., arXiv 2302.07956, tight where the   |
|                      | in every step      | first bound is cautious. A refuted mu refutes the claimed steps in any case  |

| case                       | what holds                                                                             |
| -------------------------- | -------------------------------------------------------------------------------------- |
| error                      | the chance that the bound exceeds the true epsilon, at most                            |
| several repetitions pooled | with fresh coins and fresh noise, each canary's coin enters one repetition alone:      |
|                            | parallel composition, so the pool is one mechanism with the same epsilon and more bits |
| canaries in one repetition | may depend on each other: the first theorem allows it, and the second bound counts a   |
|                            | repetition as one observation (see `lower_bound_of_mean`)                              |
| no guesses, or poor ones   | 0.0                                                                                    |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from fedmed.errors import PrivacyError
from fedmed.privacy.accounting import PrivacyEvent, epsilon

_MAX_EPSILON = 50.0
_BISECTIONS = 40
# Bets of `lower_bound_of_mean`, as shares of all there is to lose: little for many observations, much for few.
_BETS = np.array([0.05, 0.1, 0.2, 0.4, 0.6, 0.8])


def epsilon_from_guesses(bits: int, made: int, right: int, delta: float, error: float) -> float:
    """The largest epsilon that `right` of `made` guesses refute at `delta`; 0.0 when they refute none.

    Args:
        bits: coins thrown, guessed or not.

    Raises:
        PrivacyError: not 0 <= right <= made <= bits.
    """
    if not 0 <= right <= made <= bits:
        raise PrivacyError(f"right={right}, made={made}, bits={bits}: expected 0 <= right <= made <= bits")
    return _largest(lambda value: _p_value(bits, made, right, value, delta) < error, _MAX_EPSILON)


def epsilon_if_gaussian(shares: Sequence[float], delta: float, error: float) -> float:
    """Epsilon at `delta` of the least Gaussian leak that allows `shares`: right guesses of each repetition / its coins."""
    share = lower_bound_of_mean(shares, error)
    mu = 2 * NormalDist().inv_cdf(share) if share > 0.5 else 0.0
    return epsilon([PrivacyEvent(1 / mu, 1.0, 1)], delta) if mu > 1e-3 else 0.0


def lower_bound_of_mean(values: Sequence[float], error: float) -> float:
    """Below the mean of observations in [0, 1], in their order, except with probability `error`.

    A gambler who bets that the mean is above q multiplies its capital by 1 + bet * (value / q - 1). If each value's mean,
    given those before, is at most q, the capital reaches 1 / error with probability `error` at most (Ville), whatever the
    distribution. The bound is the largest q that the gambler beats, capital spread evenly over `_BETS`
    (Waudby-Smith and Ramdas, arXiv 2010.09686).
    """
    observed = np.asarray(values, dtype=np.float64)

    def beaten(mean: float) -> bool:
        logs = np.log1p(_BETS[:, None] * (observed / mean - 1)).sum(axis=1)
        return float(np.logaddexp.reduce(logs)) - math.log(len(_BETS)) >= -math.log(error)

    return _largest(lambda mean: mean > 0 and beaten(mean), 1.0)


def _p_value(bits: int, made: int, right: int, value: float, delta: float) -> float:
    """The most probable that an (value, delta)-DP mechanism makes `right` or more of `made` guesses right."""
    if not made:
        return 1.0
    mass = _binomial(made, 1 / (1 + math.exp(-value)))
    tail = float(mass[right:].sum())
    below = np.cumsum(mass[:right][::-1]) / np.arange(1, right + 1)
    return min(1.0, tail + 2 * bits * delta * float(below.max(initial=0.0)))


def _binomial(count: int, chance: float) -> npt.NDArray[np.float64]:
    """Probabilities of 0 to `count` successes."""
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    ways = factorial[-1] - factorial - factorial[::-1]
    successes = np.arange(count + 1)
    return np.exp(ways + successes * math.log(chance) + (count - successes) * math.log1p(-chance))


def _largest(refuted: Callable[[float], bool], high: float) -> float:
    """The largest value in [0, high] that is refuted, when all below are; 0.0 when none is."""
    low = 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low if low > 1e-9 else 0.0
