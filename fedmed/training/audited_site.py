"""A site's real training path with canaries for patients, as an auditor meets it. In: who is in; out: the noisy sum.

    canaries -> manifest -> LocalTrainer, round by round -> released adapters -> mean noisy sum, events charged

    >>> site = AuditedSite(base, Path("site"), canary_examples(16, 2), AuditSetting(), SecureRandom())
    >>> total, events = site.run(np.ones(16, dtype=bool))

The auditor is the strongest that the guarantee speaks of: it knows everything but coins and noise. It chooses the adapter
that comes in, plain SGD as the optimizer and the size of the step, so that the released difference is the noisy sum.

| case                       | what holds                                                                          |
| -------------------------- | ----------------------------------------------------------------------------------- |
| a canary that is left out  | is not in the cohort that `draw` is asked about: as if the site had never seen it   |
| sample_rate                | 1, so that each canary takes part in each step: nothing is said of subsampling      |
| several rounds             | each is charged before it runs, as a site's ledger does; the auditor averages their |
|                            | noisy sums, each weighted by 1 / variance of its noise                              |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedmed.data.manifest import Manifest, write_manifest
from fedmed.data.schema import Example
from fedmed.messages import LoraSpec, OptimizerSpec, PrivacySpec
from fedmed.models.base import BaseModel
from fedmed.privacy.accounting import PrivacyEvent
from fedmed.privacy.random import RandomSource
from fedmed.training.audit_faults import HEALTHY, SEPARATOR, Fault
from fedmed.training.canaries import flat, random_state
from fedmed.training.local_round import LocalTrainer
from fedmed.training.steps import RoundPlan

MAX_GRAD_NORM = 0.01
_LORA = LoraSpec(4, 8.0, ("language_model", "projector", "vision_tower"), ("all-linear",))
_SGD = OptimizerSpec("sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.0, keep_state=False)

Coins = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AuditSetting:
    """What is tried.

    Attributes:
        repetitions: independent ones, with fresh coins and noise.
        canaries: patients in each.
        records: of each canary.
        noise_multipliers: noise standard deviation / clipping norm of each round, which has one step. The two here are
            together as one step at 1.0; most is lost in the first, so that books that forget it are far off.
        step: L2 distance that one canary moves the adapter in a round: so small that the next round's gradients are the
            same, and noise, which moves every number by about as much, still far above the rounding of float32.
        delta: at which epsilon is claimed and bounded.
        confidence: that the bound is below the true epsilon.
    """

    repetitions: int = 150
    canaries: int = 16
    records: int = 2
    noise_multipliers: tuple[float, ...] = (1.1, 2.4)
    step: float = 1e-5
    delta: float = 1e-5
    confidence: float = 0.95


class AuditedSite:
    """The training path of a site whose cohort is canaries, healthy or with a fault; `close` after use.

    Args:
        folder: for its manifest.
        examples: of the canaries, with their true owners.
    """

    def __init__(
        self,
        base: BaseModel,
        folder: Path,
        examples: Sequence[Example],
        setting: AuditSetting,
        random: RandomSource,
        fault: Fault = HEALTHY,
    ) -> None:
        self._fault = fault
        self._manifest = write_manifest(folder, fault.identify(examples))
        self._canary_of = _owners(self._manifest)
        self._present = np.arange(0)
        self._trainer = LocalTrainer(base, self._manifest, random, replace(fault.mechanism, draw=self._draw))
        self._plans = [_plan(setting, noise) for noise in setting.noise_multipliers]
        self.start = random_state(self._trainer.train(_plan(setting, 0.0, steps=0), {}, 0))

    def run(self, included: Coins) -> tuple[Tensor, list[PrivacyEvent]]:
        """All rounds with the canaries `included` [m]: the mean of their noisy sums, as an auditor computes it from the
        released adapters [n], and the events charged."""
        self._present = np.flatnonzero(included[self._canary_of])
        ledger: list[PrivacyEvent] = []
        sums: list[Tensor] = []
        state = self.start
        for plan in self._plans:
            ledger.append(PrivacyEvent(plan.privacy.noise_multiplier, plan.privacy.sample_rate, plan.privacy.steps))
            released = self._trainer.train(plan, state, 0)
            sums.append((flat(state) - flat(released)) * plan.lot_size)
            state = released
        return self._weights @ torch.stack(sums), self._fault.charge(ledger)

    def close(self) -> None:
        """Takes the adapter off the base model."""
        self._trainer.close()

    @property
    def _weights(self) -> Tensor:
        """Of each round in the mean; rounds without noise count alike."""
        noise = torch.tensor([plan.privacy.noise_multiplier for plan in self._plans], dtype=torch.float64)
        weights = noise.square().reciprocal() if bool(noise.all()) else torch.ones_like(noise)
        return weights / weights.sum()

    def _draw(self, _: int, spec: PrivacySpec, random: RandomSource) -> npt.NDArray[np.intp]:
        """The site's draw among those who are in the data."""
        return self._present[self._fault.mechanism.draw(len(self._present), spec, random)]


def _plan(setting: AuditSetting, noise_multiplier: float, steps: int = 1) -> RoundPlan:
    privacy = PrivacySpec("dp", noise_multiplier, 1.0, MAX_GRAD_NORM, setting.records, steps=steps, delta=setting.delta)
    return RoundPlan(
        _LORA, privacy, _SGD, ("lora_A", "lora_B"), "float32", physical_batch=64, lot_size=MAX_GRAD_NORM / setting.step
    )


def _owners(manifest: Manifest) -> npt.NDArray[np.intp]:
    """Of each of the manifest's patients, the canary who it is, in whatever way the site has split or copied it."""
    people = [manifest.examples[records[0]].patient.split(SEPARATOR)[0] for records in manifest.patients]
    return np.unique(people, return_inverse=True)[1]
