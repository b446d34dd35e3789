"""An empirical lower bound on epsilon of the real training path, next to the epsilon that is claimed for it.

    coins -> canary patients in or out -> AuditedSite -> noisy sum -> amount of each canary in it -> guesses -> bounds

    >>> result = audit(load_base("fedmed-tiny"), AuditSetting(repetitions=100), SecureRandom())
    >>> 0 < result.lower_bound <= result.claimed_epsilon, result.flagged
    (True, False)

| case                       | what holds                                                                              |
| -------------------------- | --------------------------------------------------------------------------------------- |
| a healthy engine           | is flagged in one of twenty audits at most; far less often, as the bounds are cautious  |
| a bound below the claim    | proves nothing right: no fault of this kind was found, with this many repetitions       |
| the auditor's threshold    | is the mean amount in the repetitions before: it uses no coin and not its own           |
|                            | repetition, so that the repetitions stay independent observations                       |
| a canary shorter than C    | PrivacyError: its gradient would not test the clipping                                  |
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedmed.data.schema import Example
from fedmed.errors import PrivacyError
from fedmed.models.base import BaseModel
from fedmed.privacy.accounting import PrivacyEvent, epsilon
from fedmed.privacy.audit_bound import epsilon_from_guesses, epsilon_if_gaussian
from fedmed.privacy.random import RandomSource
from fedmed.training.audit_faults import HEALTHY, Fault
from fedmed.training.audited_site import MAX_GRAD_NORM, AuditedSite, AuditSetting, Coins
from fedmed.training.canaries import amounts, canary_examples

# Shares of the coins on which the auditor commits itself, surest first; each is tried with its part of the error.
_COMMITTED = (1 / 32, 1 / 8, 1 / 2)

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What was claimed and what was found.

    Attributes:
        claimed_epsilon: of the charged events, at `delta`.
        any_mechanism, if_gaussian: the lower bounds of fedmed.privacy.audit_bound, together right at `confidence`.
        coins, guessed, right: thrown; committed to for the first bound; right among these.
        right_of_all: share of right guesses when every coin is guessed, as for the second bound.
    """

    claimed_epsilon: float
    any_mechanism: float
    if_gaussian: float
    delta: float
    confidence: float
    coins: int
    guessed: int
    right: int
    right_of_all: float
    repetitions: int
    seconds: float

    @property
    def lower_bound(self) -> float:
        """The better of the two."""
        return max(self.any_mechanism, self.if_gaussian)

    @property
    def flagged(self) -> bool:
        """Whether the claim is refuted."""
        return self.lower_bound > self.claimed_epsilon


def audit(
    base: BaseModel,
    setting: AuditSetting,
    random: RandomSource,
    fault: Fault = HEALTHY,
    on_repetition: Callable[[], object] = bool,
) -> AuditResult:
    """Play the game `setting.repetitions` times on the site's training path, with `fault` put in.

    Args:
        base: fedmed-tiny, or any other; gets its adapter off again.
        random: of coins, draws and noise: SecureRandom, except in tests.
        on_repetition: called after each.

    Raises:
        PrivacyError: a setting is out of range, or the canaries do not suit this model.
    """
    _check(setting)
    started = time.monotonic()
    examples = canary_examples(setting.canaries, setting.records)
    with tempfile.TemporaryDirectory(prefix="fedmed-audit-") as name:
        directions = _directions(base, Path(name) / "alone", examples, setting, random)
        site = AuditedSite(base, Path(name) / "site", examples, setting, random, fault)
        try:
            scores, coins, events = _play(site, directions, setting, random, on_repetition)
        finally:
            site.close()
    return _result(scores, coins, events, setting, time.monotonic() - started)


def _check(setting: AuditSetting) -> None:
    for name in ("repetitions", "canaries", "records"):
        if getattr(setting, name) < 1:
            raise PrivacyError(f"audit {name}={getattr(setting, name)}: expected >= 1")
    if not setting.noise_multipliers or min(setting.noise_multipliers) <= 0:
        raise PrivacyError(f"audit noise_multipliers={setting.noise_multipliers}: expected one a round, each > 0")
    if not 0 < setting.confidence < 1:
        raise PrivacyError(f"audit confidence={setting.confidence}: expected between 0 and 1")


def _directions(
    base: BaseModel, folder: Path, examples: Sequence[Example], setting: AuditSetting, random: RandomSource
) -> Tensor:
    """What each canary adds to a round's sum, when the engine is right: [m, n]."""
    site = AuditedSite(base, folder, examples, replace(setting, noise_multipliers=(0.0,), step=1.0), random)
    try:
        alone = np.eye(setting.canaries, dtype=np.bool_)
        directions = torch.stack([site.run(coins)[0] for coins in alone])
    finally:
        site.close()
    shortest = float(directions.norm(dim=1).min()) / MAX_GRAD_NORM
    if not shortest > 0.99:
        raise PrivacyError(
            f"a canary's gradient is {shortest:.3g} of max_grad_norm, expected to be clipped to it",
            "this model learns nothing from the canaries' random letters: audit with fedmed-tiny",
        )
    return directions


def _play(
    site: AuditedSite,
    directions: Tensor,
    setting: AuditSetting,
    random: RandomSource,
    on_repetition: Callable[[], object],
) -> tuple[Scores, Coins, list[PrivacyEvent]]:
    """Scores, above 0 where the auditor guesses that a canary is in, and the coins: both [repetitions, m]."""
    found = np.zeros((setting.repetitions, setting.canaries))
    coins = np.zeros(found.shape, dtype=np.bool_)
    thresholds = np.full((setting.repetitions, 1), 0.5)
    events: list[PrivacyEvent] = []
    for index in range(setting.repetitions):
        coins[index] = random.uniform(setting.canaries) < 0.5
        total, events = site.run(coins[index])
        found[index] = amounts(directions, total).numpy()
        if index:
            thresholds[index] = found[:index].mean()
        on_repetition()
    return found - thresholds, coins, events


def _result(
    scores: Scores, coins: Coins, events: list[PrivacyEvent], setting: AuditSetting, seconds: float
) -> AuditResult:
    error = (1 - setting.confidence) / 2
    right = (scores > 0) == coins
    any_mechanism, guessed, count = _best_commitment(scores, right, setting.delta, error)
    return AuditResult(
        claimed_epsilon=epsilon(events, setting.delta),
        any_mechanism=any_mechanism,
        if_gaussian=epsilon_if_gaussian(right.mean(axis=1).tolist(), setting.delta, error),
        delta=setting.delta,
        confidence=setting.confidence,
        coins=right.size,
        guessed=guessed,
        right=count,
        right_of_all=float(right.mean()),
        repetitions=setting.repetitions,
        seconds=round(seconds, 1),
    )


def _best_commitment(scores: Scores, right: Coins, delta: float, error: float) -> tuple[float, int, int]:
    """The best bound over the numbers of guesses tried, that number, and how many of these are right."""
    surest = right.ravel()[np.argsort(-np.abs(scores), axis=None)]
    tried = []
    for share in _COMMITTED:
        made = int(share * surest.size)
        count = int(surest[:made].sum())
        bound = epsilon_from_guesses(surest.size, made, count, delta, error / len(_COMMITTED))
        tried.append((bound, made, count))
    return max(tried)
