"""Engines that promise more than they keep, to prove that the audit finds them. Never used by a site.

Each fault replaces one part of the real path and leaves the rest alone. All have been seen in published code.

    >>> sorted(FAULTS)
    ['batch_clipping', 'forgotten_round', 'noise_quarter', 'patient_twice', 'per_record']

| part      | healthy                                         | replaced by                                                   |
| --------- | ----------------------------------------------- | ------------------------------------------------------------- |
| mechanism | fedmed.privacy.mechanism                        | another clip or noise                                         |
| identify  | a record belongs to the patient who it is about | patient identifiers that do not stand for one person each     |
| charge    | every round that was run                        | a shorter list                                                |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedmed.data.schema import Example
from fedmed.messages import PrivacySpec
from fedmed.privacy.accounting import PrivacyEvent
from fedmed.privacy.mechanism import Mechanism, clip, noise
from fedmed.privacy.random import RandomSource

# Between a person and what a faulty site makes of it: person/1, person/2.
SEPARATOR = "/"


def _as_they_are(examples: Sequence[Example]) -> list[Example]:
    return list(examples)


def _every_round(events: Sequence[PrivacyEvent]) -> list[PrivacyEvent]:
    return list(events)


@dataclass(frozen=True, slots=True)
class Fault:
    """An engine and its books; the defaults are the healthy ones.

    Attributes:
        about: what is wrong, in a few words.
        mechanism: draw, clip and noise of a step.
        identify: how the site's records are split into patients.
        charge: events that the ledger counts, of those that were run.
    """

    about: str
    mechanism: Mechanism = field(default_factory=Mechanism)
    identify: Callable[[Sequence[Example]], list[Example]] = _as_they_are
    charge: Callable[[Sequence[PrivacyEvent]], list[PrivacyEvent]] = _every_round


def _quarter_noise(total: Tensor, spec: PrivacySpec, random: RandomSource) -> Tensor:
    return noise(total, replace(spec, noise_multiplier=spec.noise_multiplier / 4), random)


def _clip_the_batch(gradients: Tensor, sizes: Sequence[int], spec: PrivacySpec) -> Tensor:
    """The batch's mean bounded as if it were one patient's, as where a loss is averaged before `backward`."""
    return len(gradients) * clip(gradients.mean(dim=0, keepdim=True), sizes, spec)


def _every_record_a_patient(examples: Sequence[Example]) -> list[Example]:
    return [_renamed(example, index) for index, example in enumerate(examples)]


def _every_patient_twice(examples: Sequence[Example]) -> list[Example]:
    return [_renamed(example, copy) for copy in (1, 2) for example in examples]


def _renamed(example: Example, part: int) -> Example:
    return replace(example, patient=f"{example.patient}{SEPARATOR}{part}")


HEALTHY = Fault("the engine as it is")
FAULTS = {
    "noise_quarter": Fault("noise four times too small", Mechanism(noise=_quarter_noise)),
    "per_record": Fault("clipping per record instead of per patient", identify=_every_record_a_patient),
    "batch_clipping": Fault("the batch's mean clipped as one", Mechanism(clip=_clip_the_batch)),
    "patient_twice": Fault("the same patient counted twice", identify=_every_patient_twice),
    "forgotten_round": Fault("accounting forgets the first round", charge=lambda events: list(events)[1:]),
}
