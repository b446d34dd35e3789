"""The frames of a file: what describes each, where each lies, and its stored numbers.

A multi-frame file of the enhanced kind keeps rescale, window and position per frame, in functional groups (PS3.3
C.7.6.16); `frame_header` and `planes` give them in the flat form of a file with one frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

from fedmed.data.images import MAX_PIXELS
from hospital_client.dicom.faults import (
    BAD_HEADER,
    BAD_PIXELS,
    NO_DECODER,
    NO_IMAGE,
    NO_PIXELS,
    SHORT_PIXELS,
    TOO_LARGE,
    UnusableError,
)
from hospital_client.dicom.headers import element, is_native, items, number, numbers, read_whole, text

MAX_FRAMES = 1 << 14  # of one file: above any film or volume
_FLAT = (
    "PixelValueTransformationSequence",  # rescale slope and intercept
    "FrameVOILUTSequence",  # window
)
_KEPT = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Modality",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "Units",
    "DecayCorrection",
    "PatientWeight",
    "RadiopharmaceuticalInformationSequence",
    "SeriesDate",
    "SeriesTime",
    "AcquisitionDate",
    "AcquisitionTime",
)
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True, slots=True)
class Plane:
    """Where a frame lies in the patient; empty where the file does not say."""

    position: tuple[float, ...]
    orientation: tuple[float, ...]


def frame_count(header: Dataset) -> int:
    """At least 1. Raises UnusableError for a count that is none, an image of too many pixels, or bits that are not the lowest."""
    if "Rows" not in header and "Columns" not in header:
        raise UnusableError(NO_IMAGE)
    count = number(header, "NumberOfFrames") if text(header, "NumberOfFrames") else 1.0
    rows, columns = number(header, "Rows") or 0, number(header, "Columns") or 0
    if count is None or count != int(count) or count < 0 or rows <= 0 or columns <= 0:
        raise UnusableError(BAD_HEADER)
    high, stored = number(header, "HighBit"), number(header, "BitsStored")
    if high is not None and stored is not None and high != stored - 1:  # as before DICOM: read from below, it is black
        raise UnusableError(BAD_HEADER)
    if rows * columns > MAX_PIXELS or count > MAX_FRAMES:
        raise UnusableError(TOO_LARGE)
    return max(1, int(count))  # some writers put 0 for a file that is no multi-frame file


def planes(header: Dataset, count: int) -> tuple[Plane, ...]:
    """Of each frame."""
    if count == 1 and not items(header, "PerFrameFunctionalGroupsSequence"):
        return (Plane(numbers(header, "ImagePositionPatient"), numbers(header, "ImageOrientationPatient")),)
    return tuple(
        Plane(
            _of_group(header, index, "PlanePositionSequence", "ImagePositionPatient"),
            _of_group(header, index, "PlaneOrientationSequence", "ImageOrientationPatient"),
        )
        for index in range(count)
    )


def _of_group(header: Dataset, index: int, group: str, keyword: str) -> tuple[float, ...]:
    return next((numbers(item, keyword) for item in _groups(header, index, group) if numbers(item, keyword)), ())


def _groups(header: Dataset, index: int, group: str) -> list[Dataset]:
    """The items of a functional group that hold for a frame, its own before the shared one."""
    frames, shared = (items(header, f"{kind}FunctionalGroupsSequence") for kind in ("PerFrame", "Shared"))
    holders = [*frames[index : index + 1], *shared[:1]]
    return [item for holder in holders for item in items(holder, group)]


def frame_header(header: Dataset, index: int) -> Dataset:
    """What `show` needs to know of a frame, flat."""
    flat = Dataset()
    flat.file_meta = header.file_meta
    for holder in (header, *(item for group in _FLAT for item in reversed(_groups(header, index, group)))):
        for keyword in _KEPT:
            if keyword in holder and element(holder, keyword) is not None:
                flat[keyword] = holder[keyword]
    return flat


def read_frame(path: Path, index: int) -> np.ndarray:
    """A frame's stored numbers [height, width] or [height, width, 3]; YBR as RGB, a palette's colours as indices.

    Raises:
        UnusableError: no pixels, fewer than the header says, a form that no decoder reads, or damaged ones.
    """
    whole = read_whole(path)
    data = next((value for name in _PIXELS if (value := element(whole, name)) is not None), None)
    if not data:
        raise UnusableError(NO_PIXELS)
    try:
        if not get_decoder(whole.file_meta.TransferSyntaxUID).is_available:
            raise UnusableError(NO_DECODER)
    except NotImplementedError:
        raise UnusableError(NO_DECODER) from None
    try:
        return np.asarray(pixel_array(whole, index=index))
    except AttributeError:
        raise UnusableError(BAD_HEADER) from None
    except Exception as error:  # noqa: BLE001  a decoder that meets damaged bytes raises nearly anything
        raise UnusableError(_reason(str(error), native=is_native(whole))) from None


def _reason(message: str, *, native: bool) -> str:
    if native and "less than expected" in message:
        return SHORT_PIXELS
    return NO_DECODER if "does not support" in message else BAD_PIXELS
