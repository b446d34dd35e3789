"""Which slices are shown: by where they lie in the patient."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from helpers_dicom import AXIAL, CORONAL

from hospital_client.dicom.faults import MIXED, NO_POSITION, UnusableError
from hospital_client.dicom.frames import Plane
from hospital_client.dicom.slices import Slice, order, spread


def piece(
    name: str, position: tuple[float, ...] = (), orientation: tuple[float, ...] = (), *,
    number: float = 1, shape: tuple[int, int] = (8, 8), space: str = "f", frame: int = 0,
) -> Slice:  # fmt: skip
    return Slice(name, frame, (1, number, frame), shape, space, Plane(position, orientation))


def names(slices: list[Slice]) -> str:
    return "".join(item.path for item in order(slices))


def test_slices_lie_along_the_normal_whatever_their_files_and_numbers_say() -> None:
    heights = np.random.default_rng(0).permutation(9)
    slices = [
        piece("abcdefghi"[height], (0, 0, 2.5 * float(height)), AXIAL, number=float(9 - height)) for height in heights
    ]
    assert names(slices) == "abcdefghi"


def test_a_coronal_or_oblique_series_goes_by_its_own_normal() -> None:
    assert names([piece("b", (50, 10, 0), CORONAL), piece("a", (-50, -3, 9), CORONAL)]) == "ab"
    half = 0.5**0.5
    tilted = (1.0, 0.0, 0.0, 0.0, half, half)
    steps = [piece(letter, (0.0, -half * at, half * at), tilted) for letter, at in (("c", 3), ("a", 1), ("b", 2))]
    assert names(steps) == "abc"


def test_of_one_place_only_the_first_is_kept() -> None:
    slices = [
        piece("b", (0, 0, 5), AXIAL, number=2),
        piece("a", (0, 0, 5), AXIAL, number=1),
        piece("c", (0, 0, 9), AXIAL),
    ]
    assert names(slices) == "ac"


def test_files_without_a_place_go_by_instance_number_and_one_file_by_its_frames() -> None:
    assert names([piece("b", number=12), piece("a", number=3)]) == "ab"
    assert [item.frame for item in order([piece("f", number=inf, frame=index) for index in (2, 0, 1)])] == [0, 1, 2]


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (piece("b", (0, 0, 5), CORONAL), MIXED),
        (piece("b", (0, 0, 5), AXIAL, shape=(8, 9)), MIXED),
        (piece("b", (0, 0, 5), AXIAL, space="other"), MIXED),
        (piece("b"), MIXED),
    ],
)
def test_slices_that_do_not_fit_together_are_refused(second: Slice, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason):
        order([piece("a", (0, 0, 0), AXIAL), second])


def test_slices_without_place_and_number_are_refused_and_directions_that_are_none() -> None:
    with pytest.raises(UnusableError, match=NO_POSITION):
        order([piece("a", number=inf), piece("b", number=inf)])
    with pytest.raises(UnusableError, match=MIXED):
        order([piece("a", (0, 0, 0), (0.0,) * 6), piece("b", (0, 0, 5), (0.0,) * 6)])


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [(1, 1, [0]), (2, 1, [1]), (9, 1, [4]), (100, 4, [12, 37, 62, 87]), (3, 9, [0, 1, 2]), (5, 5, [0, 1, 2, 3, 4])],
)
def test_places_are_spread_evenly(count: int, wanted: int, expected: list[int]) -> None:
    assert spread(count, wanted) == expected


def test_a_spread_has_as_many_places_as_asked_and_none_twice() -> None:
    for count in range(1, 60):
        for wanted in range(1, count + 1):
            places = spread(count, wanted)
            assert len(set(places)) == wanted
            assert set(places) <= set(range(count))
