"""DICOM files as scanners write them, made by the tests. Nobody's data: every value is one of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
}
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def image(pixels: np.ndarray, modality: str = "CT", **attributes: Any) -> Dataset:
    """A file's data set in memory. `attributes` by keyword; None leaves one out."""
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    shape = pixels.shape[1:] if attributes.get("NumberOfFrames") else pixels.shape
    colors = len(shape) == 3
    values: dict[str, Any] = {
        "SOPClassUID": CLASSES.get(modality, CLASSES["CT"]),
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.1",
        "Modality": modality,
        "PatientID": "p-001",
        "PatientName": "Example^Person",
        "AccessionNumber": "ACC-00017",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "Rows": shape[0],
        "Columns": shape[1],
        "SamplesPerPixel": 3 if colors else 1,
        "PhotometricInterpretation": "RGB" if colors else "MONOCHROME2",
        "PlanarConfiguration": 0 if colors else None,
        "BitsAllocated": pixels.dtype.itemsize * 8,
        "BitsStored": pixels.dtype.itemsize * 8,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
        **attributes,
    }
    values.setdefault("HighBit", values["BitsStored"] - 1)
    for keyword, value in values.items():
        if value is not None:
            setattr(found, keyword, value)
    found.file_meta.MediaStorageSOPClassUID = found.get("SOPClassUID", CLASSES["CT"])
    found.file_meta.MediaStorageSOPInstanceUID = found.get("SOPInstanceUID", generate_uid())
    return found


def save(path: Path, found: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return path


def ct_series(
    folder: Path,
    levels: Sequence[int],
    *,
    orientation: Sequence[float] = AXIAL,
    step: Sequence[float] = (0, 0, 5.0),
    **attributes: Any,
) -> list[Path]:
    """One flat slice for each level, the first lowest along `step`; names of files that say nothing of the order."""
    paths = []
    for index, level in enumerate(levels):
        values: dict[str, Any] = {
            "InstanceNumber": len(levels) - index,
            "ImagePositionPatient": [float(part) * index for part in step],
            "ImageOrientationPatient": list(orientation),
            "FrameOfReferenceUID": "1.2.3.9",
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            "WindowCenter": 0,
            "WindowWidth": 2000,
            **attributes,
        }
        found = image(np.full((8, 8), level, dtype=np.int16), **values)
        paths.append(save(folder / f"{(index * 7) % 13:02d}-{attributes.get('SeriesInstanceUID', 's')}", found))
    return paths


def write_table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def enhanced(path: Path) -> Path:
    """A multi-frame MR of two frames of the stored number 10, with rescale, window and place of each in its own group."""
    found = image(np.full((2, 4, 4), 10, np.int16), "MR", NumberOfFrames=2)
    shared, plane, groups = Dataset(), Dataset(), []
    plane.ImageOrientationPatient = list(AXIAL)
    shared.PlaneOrientationSequence = [plane]
    for index, slope in enumerate((1, 5)):
        rescale, window, position, frame = Dataset(), Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, 2
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = 50, 100, "LINEAR_EXACT"
        position.ImagePositionPatient = [0, 0, 3 - index]
        frame.PixelValueTransformationSequence, frame.FrameVOILUTSequence = [rescale], [window]
        frame.PlanePositionSequence = [position]
        groups.append(frame)
    found.SharedFunctionalGroupsSequence, found.PerFrameFunctionalGroupsSequence = [shared], groups
    return save(path, found)
