"""Which frames of a series are shown: by where they lie in the patient, never by the name of a file.

ordered = order(slices)                     along the normal of the plane; UnusableError where they do not fit together
spread(len(ordered), 1) -> [n // 2]         the middle one;  spread(n, 9): nine, evenly, without the ends
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from hospital_client.dicom.faults import MIXED, NO_POSITION, UnusableError
from hospital_client.dicom.frames import Plane

# Of direction cosines: as much as the rounding in the header of a tilted series, far less than another view.
_SAME_DIRECTION = 1e-2
# Millimetres: nearer ones are the same place at another time or with another echo.
_SAME_PLACE = 1e-3


@dataclass(frozen=True, slots=True)
class Slice:
    """A frame of a file.

    Attributes:
        order: acquisition number and instance number, and the frame; infinity where the header has none.
        shape: rows and columns.
        space: the frame of reference.
    """

    path: str
    frame: int
    order: tuple[float, float, int]
    shape: tuple[int, int]
    space: str
    plane: Plane


def order(slices: Sequence[Slice]) -> list[Slice]:
    """One slice for each place, along the normal; where no file says its place, by instance number and frame.

    Raises:
        UnusableError: sizes, orientations or frames of reference differ, or some say their place and some do not.
    """
    if len({item.shape for item in slices}) > 1 or len({item.space for item in slices}) > 1:
        raise UnusableError(MIXED)
    if len(slices) == 1:
        return list(slices)
    placed = [len(item.plane.position) == 3 and len(item.plane.orientation) == 6 for item in slices]
    if any(placed) and not all(placed):
        raise UnusableError(MIXED)
    return _by_place(slices) if any(placed) else _by_number(slices)


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` places, evenly and symmetrically; all where there are no more."""
    if wanted >= count:
        return list(range(count))
    return [int((index + 0.5) * count / wanted) for index in range(wanted)]


def _by_place(slices: Sequence[Slice]) -> list[Slice]:
    orientations = np.array([item.plane.orientation for item in slices])
    if np.abs(orientations - orientations[0]).max() > _SAME_DIRECTION:
        raise UnusableError(MIXED)
    normal = np.cross(orientations[0][:3], orientations[0][3:])
    places = np.array([item.plane.position for item in slices]) @ normal
    if np.linalg.norm(normal) < 0.5:  # rows and columns of a plane are at right angles: these are no directions
        raise UnusableError(MIXED)
    ranked = sorted(range(len(slices)), key=lambda index: (places[index], slices[index].order))
    chosen = ranked[:1]
    for index in ranked[1:]:
        if places[index] - places[chosen[-1]] > _SAME_PLACE:
            chosen.append(index)
    return [slices[index] for index in chosen]


def _by_number(slices: Sequence[Slice]) -> list[Slice]:
    """Of files without a place, such as the frames of a film."""
    if len({item.path for item in slices}) > 1 and any(item.order[1] == inf for item in slices):
        raise UnusableError(NO_POSITION)
    return sorted(slices, key=lambda item: item.order)
