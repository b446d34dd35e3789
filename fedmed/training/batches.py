"""What a step computes on: drawn records in physical batches. In: records per drawn patient; out: chunks with owners.

    >>> pack([[0, 1], [2], [3, 4, 5]], physical_batch=3)
    [Group(patients=((2,), (0, 1))), Group(patients=((3, 4, 5),))]

A patient's records stay in one group, and a group is clipped as a whole, so a patient is clipped exactly once. A group
is one physical batch, unless a single patient has more records than that: then the group has several chunks, whose
gradients are added up before clipping.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fedmed.data.collate import Batch, Collator, Encoded, TooLongError
from fedmed.data.manifest import Manifest

log = logging.getLogger("fedmed.training")
# The last encoded examples are kept up to this size: decoding and preparing an image costs more than a small model's step.
CACHE_BYTES = 512 << 20
# One call of the processor for several records is twice as fast as one for each; but their images, some with millions
# of pixels, are in memory together, as floats, until they are resized.
ENCODED_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class Group:
    """Patients (each a tuple of record indices) whose gradients are clipped together."""

    patients: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One physical batch: records [B], patient in the group that owns each [B], weight of each one's loss [B]."""

    records: list[int]
    owner: torch.Tensor
    weight: torch.Tensor


def pack(patients: Sequence[Sequence[int]], physical_batch: int) -> list[Group]:
    """Groups of at most `physical_batch` records, or of one patient with more, in the order given.

    Within a group patients with equally many records stand together: see `Segments.runs`.
    """
    groups: list[list[tuple[int, ...]]] = []
    filled = 0
    for records in patients:
        if not groups or filled + len(records) > physical_batch:
            groups.append([])
            filled = 0
        groups[-1].append(tuple(records))
        filled += len(records)
    return [Group(tuple(sorted(group, key=len))) for group in groups]


def chunks(group: Group, physical_batch: int) -> Iterator[Chunk]:
    """A group's records in physical batches. A record's weight is 1 / (drawn records of its patient)."""
    flat = [(record, index) for index, records in enumerate(group.patients) for record in records]
    for start in range(0, len(flat), physical_batch):
        part = flat[start : start + physical_batch]
        owner = torch.tensor([index for _, index in part])
        weight = torch.tensor([1 / len(group.patients[index]) for _, index in part])
        yield Chunk([record for record, _ in part], owner, weight)


class EncodedExamples:
    """The manifest's examples as tensors: encoded when drawn, the last `CACHE_BYTES` of them kept."""

    def __init__(self, manifest: Manifest, collator: Collator) -> None:
        self._manifest = manifest
        self._collator = collator
        self._kept: dict[int, Encoded] = {}
        self._fits: dict[int, bool] = {}
        self._room = CACHE_BYTES

    def fitting(
        self, patients: Sequence[Sequence[int]], stop_if_asked: Callable[[], None] = lambda: None
    ) -> list[list[int]]:
        """Of each patient the records that the model can take, of those who have any: each told by itself alone.

        What was not looked at before is encoded for it; `stop_if_asked` is called in between, and may raise.

        The site's log says how many there are that it cannot take. To fail instead would tell that somebody has such a
        record, at a length that a task can choose: its virtual tokens take up the model's positions.
        """
        new = [record for own in patients for record in own if record not in self._fits]
        for start in range(0, len(new), ENCODED_TOGETHER):
            stop_if_asked()
            self._find_fitting(new[start : start + ENCODED_TOGETHER])
        if unfit := sum(not self._fits[record] for record in new):
            log.warning("%d records are too long for the model and add nothing", unfit)
        left = [[record for record in own if self._fits[record]] for own in patients]
        return [own for own in left if own]

    def _find_fitting(self, records: Sequence[int]) -> None:
        try:
            self._encode(records)
        except TooLongError:
            if len(records) > 1:
                for record in records:
                    self._find_fitting([record])
                return
            self._fits[records[0]] = False
        else:
            self._fits |= dict.fromkeys(records, True)

    def batch(self, records: Sequence[int]) -> Batch:
        """A right-padded training batch of these records."""
        items = {record: self._kept[record] for record in records if record in self._kept}
        missing = [record for record in records if record not in items]
        for start in range(0, len(missing), ENCODED_TOGETHER):
            items |= self._encode(missing[start : start + ENCODED_TOGETHER])
        return self._collator.join([items[record] for record in records])

    def text_size(self, record: int) -> int:
        """A cheap guide to a record's length: characters of its texts."""
        example = self._manifest.examples[record]
        return len(example.question) + len(example.answer)

    def _encode(self, records: Sequence[int]) -> dict[int, Encoded]:
        examples = [self._manifest.examples[record] for record in records]
        images = [self._manifest.images(example) for example in examples]
        items = dict(zip(records, self._collator.encode_all(examples, images), strict=True))
        for record, item in items.items():
            self._room -= item.num_bytes
            self._kept[record] = item
        while (
            self._room < 0
        ):  # the oldest go: those of this draw, looked at for their length, are about to be trained on
            self._room += self._kept.pop(next(iter(self._kept))).num_bytes
        return items
