"""Which slice of a layer's activation belongs to which patient. In: owners of examples and image rows; out: segments.

    >>> owners = Owners(examples=[0, 0, 1], rows=[0, 1, 1], num_patients=2)
    >>> owners.segments("language_model", leading=3, positions=12, name="q_proj").lengths      # 4 tokens an example
    [8, 4]

Shapes: B examples, R rows of the vision tower's leading axis (images, sub-images or patches), P patients; a layer sees
an activation [leading, ..., features], that is `positions` vectors in all.

| layer of                           | leading axis                      | result                                          |
| ---------------------------------- | --------------------------------- | ----------------------------------------------- |
| language model, head, embeddings   | B                                 | each example's positions are its patient's      |
| vision tower, projector            | R, or R times tokens              | each row's positions are its patient's          |
| the same, patches merged by a group| R divided by the group            | the same; PrivacyError if a group mixes patients|
| anything                           | another number                    | PrivacyError naming the layer                   |

Patients stand in ascending order in a batch, so that each owns one consecutive segment. That a layer really keeps
examples apart and in order is not taken on trust: see `PatientGradients`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

from fedmed.errors import PrivacyError

HINT = "leave this layer out of lora.parts, lora.targets and lora.modules_to_save; only `mode: none` can train it"
VISION = ("vision_tower", "projector")


@dataclass(frozen=True)
class Segments:
    """Consecutive positions of an activation: `lengths[p]` of them belong to patient p."""

    lengths: list[int]

    @cached_property
    def runs(self) -> list[tuple[slice, slice]]:
        """Neighbouring patients who own equally many: the patients, and their positions. Whoever owns none is left out."""
        found, patient, position = [], 0, 0
        for length, same in groupby(self.lengths):
            count = sum(1 for _ in same)
            if length:
                found.append((slice(patient, patient + count), slice(position, position + count * length)))
            patient, position = patient + count, position + count * length
        return found


class Owners:
    """Who owns what in one physical batch.

    Args:
        examples: patient of each example [B], ascending, in 0..num_patients-1.
        rows: patient of each row of the vision tower [R], ascending.
        num_patients: P.

    Raises:
        PrivacyError: an order that is not ascending.
    """

    def __init__(self, examples: Sequence[int], rows: Sequence[int], num_patients: int) -> None:
        for kind, owners in (("examples", examples), ("image rows", rows)):
            if any(after < before for before, after in pairwise(owners)):
                raise PrivacyError(f"owners of {kind}: expected in ascending order, a patient's records side by side")
        self.num_patients = num_patients
        self._owners = {"examples": list(examples), "image rows": list(rows)}
        self._known: dict[tuple[str, int, int], Segments] = {}

    def segments(self, part: str | None, leading: int, positions: int, name: str) -> Segments:
        """Segments of an activation of `positions` vectors whose first axis is `leading`, in a layer of `part`.

        Raises:
            PrivacyError: the leading axis is not one that can be told apart by patient; names the layer.
        """
        axis = "image rows" if part in VISION else "examples"
        key = (axis, leading, positions)
        if key not in self._known:
            lengths = [0] * self.num_patients
            for owner in self._of_leading(axis, leading, name):
                lengths[owner] += positions // leading
            self._known[key] = Segments(lengths)
        return self._known[key]

    def _of_leading(self, axis: str, leading: int, name: str) -> Sequence[int]:
        """Owner of each element of the leading axis."""
        owners = self._owners[axis]
        count = len(owners)
        if leading == count:
            return owners
        if axis == "image rows" and count and leading % count == 0:
            return [owner for owner in owners for _ in range(leading // count)]
        if axis == "image rows" and leading and count % leading == 0:
            return self._of_groups(owners, count // leading, name)
        raise PrivacyError(f"layer {name}: {leading} activations for {count} {axis} with an owner", HINT)

    def _of_groups(self, owners: Sequence[int], size: int, name: str) -> Sequence[int]:
        groups = [owners[start : start + size] for start in range(0, len(owners), size)]
        if any(group[0] != group[-1] for group in groups):
            raise PrivacyError(f"layer {name}: one activation mixes images of several patients", HINT)
        return [group[0] for group in groups]
