"""How well an adapter answers a site's own patients, as counts that may leave. In: a model, patients; out: two noisy numbers.

    one Poisson draw of patients -> at most k records of each -> share answered right -> fedmed.privacy.counts -> NoisyCounts

The model is the incoming adapter's: a round evaluates, then trains.

| case                                     | what holds                                                                |
| ---------------------------------------- | ------------------------------------------------------------------------- |
| mode dp, metrics_noise_multiplier above 0| one event: PrivacyEvent(metrics_noise_multiplier, sample_rate, steps=1),  |
|                                          | which the site's ledger holds before this runs                            |
| otherwise                                | no record is read and nothing is drawn: NO_COUNTS                         |
| out of memory                            | the same draw again in smaller batches, before any noise is drawn         |
| max_patients                             | does not cap this draw: forward passes alone need no room for gradients   |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import nn

from fedmed.errors import FederationError
from fedmed.privacy.counts import NO_COUNTS, NoisyCounts, noisy_counts
from fedmed.privacy.random import RandomSource
from fedmed.privacy.sampling import draw_patients, draw_records
from fedmed.training.answers import answers_right
from fedmed.training.batches import EncodedExamples, chunks, pack
from fedmed.training.device_memory import PhysicalBatch
from fedmed.training.steps import RoundPlan

_FORWARD_BATCH = 16


def count_right(
    plan: RoundPlan,
    model: nn.Module,
    examples: EncodedExamples,
    patients: Sequence[Sequence[int]],
    random: RandomSource,
    batch: PhysicalBatch,
    should_stop: Callable[[], bool] = bool,
    withdrawn: Callable[[], Collection[int]] = frozenset,
) -> NoisyCounts:
    """The noisy counts of one draw, as the table above says.

    Args:
        patients: record indices of each, of the records that the plan selects; whoever has none is not counted, nor
            who has none that fits the model.
        batch: as training has it; before it has chosen one, a size that forward passes alone can do with.
        withdrawn: indices of patients who are left out of what was drawn; may raise.

    Raises:
        FederationError: `should_stop` said so, before a physical batch.
    """
    privacy = plan.privacy
    if privacy.mode != "dp" or not privacy.metrics_noise_multiplier:
        return NO_COUNTS
    model.eval()
    drawn = draw_patients(len(patients), privacy.sample_rate, random)
    gone = withdrawn()
    kept = [index for index in drawn if index not in gone and patients[index]]
    drawn_records = [draw_records(patients[index], privacy.records_per_patient, random) for index in kept]
    records = examples.fitting(drawn_records, partial(_stop_if_asked, should_stop))
    used = batch if batch.size else PhysicalBatch(_FORWARD_BATCH)
    shares = used.within_memory(lambda: _shares(plan, model, examples, records, used.size, should_stop))
    return noisy_counts(shares, privacy.metrics_noise_multiplier, random)


def _stop_if_asked(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise FederationError("the round was stopped while it evaluated", "what it had reserved stays spent")


def _shares(
    plan: RoundPlan,
    model: nn.Module,
    examples: EncodedExamples,
    patients: Sequence[Sequence[int]],
    physical_batch: int,
    should_stop: Callable[[], bool],
) -> list[float]:
    """Of each drawn patient, the share of its drawn records that are answered right, in [0, 1]."""
    device = next(model.parameters()).device
    found: list[float] = []
    for group in pack(patients, physical_batch):
        shares = torch.zeros(len(group.patients), dtype=torch.float64)
        for chunk in chunks(group, physical_batch):
            _stop_if_asked(should_stop)
            right = answers_right(model, examples.batch(chunk.records).to(device), plan.precision)
            shares.index_add_(0, chunk.owner, right.cpu().double() * chunk.weight.double())
        found += shares.clamp(max=1.0).tolist()  # three float32 weights of 1/3 are a little more than 1
    return found
