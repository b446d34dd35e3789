"""A site's real training path with canaries for patients, as an auditor meets it. In: who is in; out: the noisy sum.

    canaries -> manifest -> LocalTrainer, round by round -> released adapters -> noisy sum, events charged

    >>> site = AuditedSite(base, Path("site"), canary_examples(16, 2), AuditSetting(), SecureRandom())
    >>> total, events = site.run(np.ones(16, dtype=bool))

The auditor is the strongest that the guarantee speaks of: it knows everything but coins and noise. It chooses the adapter
that comes in, plain SGD as the optimizer and the size of the step, so that the released difference is the noisy sum.

| case                       | what holds                                                                          |
| -------------------------- | ----------------------------------------------------------------------------------- |
| a canary that is left out  | is not in the cohort that `draw` is asked about: as if the site had never seen it   |
| sample_rate                | 1, so that each canary takes part in each step: nothing is said of subsampling      |
| several rounds             | each is charged before it runs, as a site's ledger does; their noisy sums add up    |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
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
        rounds: of one noisy step each.
        noise_multiplier: noise standard deviation / clipping norm of a step; two rounds at 1.414 are as one at 1.
        step: L2 distance that one canary moves the adapter in a round: so small that the next round's gradients are the
            same, and noise, which moves every number by about as much, still far above the rounding of float32.
        delta: at which epsilon is claimed and bounded.
        confidence: that the bound is below the true epsilon.
    """

    repetitions: int = 150
    canaries: int = 16
    records: int = 2
    rounds: int = 2
    noise_multiplier: float = 1.414
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
        self._rounds = setting.rounds
        self._manifest = write_manifest(folder, fault.identify(examples))
        self._canary_of = _owners(self._manifest)
        self._present = np.arange(0)
        self._trainer = LocalTrainer(base, self._manifest, random, replace(fault.mechanism, draw=self._draw))
        self._plan = _plan(setting)
        self.start = random_state(self._trainer.train(_plan(setting, steps=0), {}, 0))

    def run(self, included: Coins) -> tuple[Tensor, list[PrivacyEvent]]:
        """All rounds with the canaries `included` [m]: what an auditor computes from the released adapters [n], being
        the sum over rounds of the noisy sums; and the events charged."""
        self._present = np.flatnonzero(included[self._canary_of])
        spec = self._plan.privacy
        ledger: list[PrivacyEvent] = []
        state = self.start
        for _ in range(self._rounds):
            ledger.append(PrivacyEvent(spec.noise_multiplier, spec.sample_rate, spec.steps))
            state = self._trainer.train(self._plan, state, 0)
        return (flat(self.start) - flat(state)) * self._plan.lot_size, self._fault.charge(ledger)

    def close(self) -> None:
        """Takes the adapter off the base model."""
        self._trainer.close()

    def _draw(self, _: int, spec: PrivacySpec, random: RandomSource) -> npt.NDArray[np.intp]:
        """The site's draw among those who are in the data."""
        return self._present[self._fault.mechanism.draw(len(self._present), spec, random)]


def _plan(setting: AuditSetting, steps: int = 1) -> RoundPlan:
    privacy = PrivacySpec(
        "dp", setting.noise_multiplier, 1.0, MAX_GRAD_NORM, setting.records, steps=steps, delta=setting.delta
    )
    return RoundPlan(
        _LORA, privacy, _SGD, ("lora_A", "lora_B"), "float32", physical_batch=64, lot_size=MAX_GRAD_NORM / setting.step
    )


def _owners(manifest: Manifest) -> npt.NDArray[np.intp]:
    """Of each of the manifest's patients, the canary who it is, in whatever way the site has split or copied it."""
    people = [manifest.examples[records[0]].patient.split(SEPARATOR)[0] for records in manifest.patients]
    return np.unique(people, return_inverse=True)[1]
