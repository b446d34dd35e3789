"""PET on the scale of standardised uptake, and what is shown where the header does not give it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers_dicom import image
from pydicom.dataset import Dataset

from hospital_client.dicom.display import Frame, Window, show
from hospital_client.dicom.frames import frame_header
from hospital_client.dicom.pet import suv_factor


def pet(pixels: np.ndarray, slope: float = 1.0, **changes: Any) -> Dataset:
    """70 kg, 350 MBq, one half-life before the series: at 175 MBq left, 2,500 Bq/ml are SUV 1."""
    dose = Dataset()
    dose.RadionuclideTotalDose = 350e6
    dose.RadionuclideHalfLife = 6600
    dose.RadiopharmaceuticalStartTime = "080000"
    attributes = {
        "Units": "BQML", "DecayCorrection": "START", "PatientWeight": 70, "SeriesDate": "20200102", "SeriesTime": "095000.5",
        "RadiopharmaceuticalInformationSequence": [dose], "RescaleSlope": slope, "RescaleIntercept": 0,
        "WindowCenter": 3, "WindowWidth": 6,
    }  # fmt: skip
    return image(pixels, "PT", **{**attributes, **changes})


def shown(*found: Dataset) -> list[np.ndarray]:
    return show([Frame(item.pixel_array, frame_header(item, 0)) for item in found], Window())


def test_uptake_of_ten_is_white_and_the_files_own_window_is_not_used() -> None:
    (pixels,) = shown(pet(np.array([[0, 2500], [12500, 40000]], dtype=np.uint16)))
    assert pixels.tolist() == [[0, 26], [128, 255]]


def test_equal_uptake_is_equally_bright_whatever_the_slope_of_its_slice() -> None:
    (low,) = shown(pet(np.full((2, 2), 10000, dtype=np.uint16), slope=0.5))
    (high,) = shown(pet(np.full((2, 2), 2000, dtype=np.uint16), slope=2.5))
    assert low.tolist() == high.tolist() == [[51, 51], [51, 51]]


@pytest.mark.parametrize(
    "changes",
    [
        {"Units": "CNTS"},
        {"PatientWeight": None},
        {"PatientWeight": 0},
        {"DecayCorrection": "NONE"},
        {"SeriesTime": "070000"},
        {"SeriesTime": "no time"},
        {"RadiopharmaceuticalInformationSequence": None},
        {"AcquisitionDate": "20200102", "AcquisitionTime": "090000"},
    ],
)
def test_without_all_of_what_uptake_needs_the_series_share_the_percentiles_from_zero(changes: dict[str, Any]) -> None:
    first = pet(np.full((4, 4), 100, dtype=np.uint16), **changes)
    second = pet(np.full((4, 4), 50, dtype=np.uint16), slope=8, **changes)
    assert suv_factor(frame_header(first, 0)) is None
    dim, bright = shown(first, second)
    assert (dim[0, 0], bright[0, 0]) == (64, 255)


def test_a_dose_given_at_the_time_of_correction_has_not_decayed() -> None:
    assert suv_factor(frame_header(pet(np.zeros((2, 2), np.uint16), DecayCorrection="ADMIN"), 0)) == 70000 / 350e6
