"""Properties that hold for the real engine and break, one each, when a fault is planted. Exact, in seconds.

What needs many repetitions and statistics is `fedmed privacy audit`; what is here finds the same faults without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from torch import Tensor

from fedmed.messages import PrivacySpec
from fedmed.models.base import BaseModel
from fedmed.privacy.random import RandomSource, SecureRandom
from fedmed.training.audit_faults import FAULTS, HEALTHY, Fault
from fedmed.training.audited_site import MAX_GRAD_NORM, AuditedSite, AuditSetting
from fedmed.training.canaries import canary_examples

CANARIES = 4
SETTING = AuditSetting(canaries=CANARIES, records=5, noise_multipliers=(1.4,))
NOBODY, EVERYBODY = np.zeros(CANARIES, dtype=bool), np.ones(CANARIES, dtype=bool)
BREAKS = {
    "noise_quarter": "noise",
    "per_record": "sensitivity",
    "batch_clipping": "sensitivity",
    "patient_twice": "sensitivity",
    "forgotten_round": "books",
}


def sensitivity(base: BaseModel, folder: Path, fault: Fault) -> bool:
    """Adding one patient with five records moves the sum by at most the bound, whoever else is there."""
    setting = replace(SETTING, noise_multipliers=(0.0,), step=1.0)
    site = AuditedSite(base, folder, canary_examples(CANARIES, setting.records), setting, SecureRandom(), fault)
    added = np.arange(CANARIES) == 1
    pairs = [(NOBODY, added), (EVERYBODY & ~added, EVERYBODY)]
    moved = [float((site.run(larger)[0] - site.run(smaller)[0]).norm()) for smaller, larger in pairs]
    site.close()
    return max(moved) <= MAX_GRAD_NORM * (1 + 1e-3)


def noise(base: BaseModel, folder: Path, fault: Fault) -> bool:
    """Without patients, what leaves is Gaussian noise of the charged deviation: chi-square, two-sided at 1e-6."""
    site = AuditedSite(base, folder, canary_examples(CANARIES, 1), SETTING, SecureRandom(), fault)
    drawn = site.run(NOBODY)[0] / (SETTING.noise_multipliers[0] * MAX_GRAD_NORM)
    site.close()
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], df=drawn.numel())
    return low < float(drawn.square().sum()) < high


def books(base: BaseModel, folder: Path, fault: Fault) -> bool:
    """The noisy steps that were run are the steps that were charged."""
    steps = 0

    def counted(total: Tensor, spec: PrivacySpec, random: RandomSource) -> Tensor:
        nonlocal steps
        steps += 1
        return fault.mechanism.noise(total, spec, random)

    counting = replace(fault, mechanism=replace(fault.mechanism, noise=counted))
    setting = replace(SETTING, noise_multipliers=(1.0, 2.0, 3.0))
    site = AuditedSite(base, folder, canary_examples(CANARIES, 1), setting, SecureRandom(), counting)
    _, charged = site.run(NOBODY)
    site.close()
    return steps == 3 and steps == sum(event.steps for event in charged)


PROPERTIES: dict[str, Callable[[BaseModel, Path, Fault], bool]] = {
    "sensitivity": sensitivity,
    "noise": noise,
    "books": books,
}


def test_the_real_engine_has_every_property(tiny_base: BaseModel, tmp_path: Path) -> None:
    held = {name: holds(tiny_base, tmp_path / name, HEALTHY) for name, holds in PROPERTIES.items()}
    assert held == dict.fromkeys(PROPERTIES, True)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_breaks_its_property_alone(tiny_base: BaseModel, tmp_path: Path, name: str) -> None:
    broken = [key for key, holds in PROPERTIES.items() if not holds(tiny_base, tmp_path / key, FAULTS[name])]
    assert broken == [BREAKS[name]]
