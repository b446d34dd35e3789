"""Standardised uptake of PET: the one scale on which two patients' pictures can be compared.

    value (Bq/ml) * suv_factor(header) = SUV by body weight; shown from 0 (black) to MOST_SUV (white)

A PET file's own window follows the hottest voxel of each slice, so it is not used. Where the header does not give the
uptake (other units, no dose, no weight, another decay correction), 0 to the 99.5th percentile is shown instead.
"""

from __future__ import annotations

from datetime import datetime

from pydicom.dataset import Dataset

from hospital_client.dicom.headers import items, number, text

MOST_SUV = 10.0
_MOST_SECONDS = 24 * 3600.0


def suv_factor(header: Dataset) -> float | None:
    """SUV by body weight for one Bq/ml; None where the header does not say all of what it needs."""
    doses = items(header, "RadiopharmaceuticalInformationSequence")
    weight = number(header, "PatientWeight")
    if text(header, "Units") != "BQML" or not doses or not weight or weight <= 0:
        return None
    dose, half_life = (number(doses[0], key) for key in ("RadionuclideTotalDose", "RadionuclideHalfLife"))
    seconds = _decay_seconds(header, doses[0])
    if not dose or dose <= 0 or not half_life or half_life <= 0 or seconds is None:
        return None
    return weight * 1000.0 / (dose * 0.5 ** (seconds / half_life))


def _decay_seconds(header: Dataset, dose: Dataset) -> float | None:
    """From the injection to the time for which the numbers were corrected."""
    correction = text(header, "DecayCorrection")
    if correction == "ADMIN":
        return 0.0
    day = text(header, "SeriesDate")
    injected = text(dose, "RadiopharmaceuticalStartDateTime") or day + text(dose, "RadiopharmaceuticalStartTime")
    start, end = _moment(injected), _moment(day + text(header, "SeriesTime"))
    acquired = _moment(text(header, "AcquisitionDate") + text(header, "AcquisitionTime"))
    made_later = acquired is not None and end is not None and end > acquired  # of a series that was computed afterwards
    if correction != "START" or start is None or end is None or made_later:
        return None
    seconds = (end - start).total_seconds()
    return seconds if 0.0 <= seconds <= _MOST_SECONDS else None


def _moment(digits: str) -> datetime | None:
    try:
        return datetime.strptime(digits[:14], "%Y%m%d%H%M%S")
    except ValueError:
        return None
