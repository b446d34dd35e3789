"""Reads the header of a file that may be DICOM, quietly: pydicom's warnings and log lines hold values of patients.

with quiet():
    header = read_header(path)      # all elements before the pixel data; UnusableError where it is no DICOM image
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from hospital_client.dicom.faults import DIRECTORY, NOT_DICOM, UNREADABLE, UnusableError

_DICOM_UIDS = "1.2.840.10008."
_SYNTAXES = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Silences pydicom, and takes files as they are: a value of the wrong form is told by who needs it."""
    logger = logging.getLogger("pydicom")
    disabled, mode = logger.disabled, config.settings.reading_validation_mode
    logger.disabled, config.settings.reading_validation_mode = True, config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled, config.settings.reading_validation_mode = disabled, mode


def read_header(path: Path) -> Dataset:
    """Everything before the pixel data. Raises UnusableError for what is not DICOM, a DICOMDIR, or broken."""
    return _read(path, stop_before_pixels=True)


def read_whole(path: Path) -> Dataset:
    """With the pixel data. Raises UnusableError as `read_header`."""
    return _read(path, stop_before_pixels=False)


def _read(path: Path, *, stop_before_pixels: bool) -> Dataset:
    try:
        try:
            found: Dataset = pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
        except InvalidDicomError:
            found = _without_preamble(path, stop_before_pixels)
        found = _with_syntax(found)
    except UnusableError:
        raise
    except Exception:  # noqa: BLE001  a parser that meets a broken file raises nearly anything
        raise UnusableError(UNREADABLE) from None
    if text(found, "MediaStorageSOPClassUID", of_file=True) == MediaStorageDirectoryStorage:
        raise UnusableError(DIRECTORY)
    return found


def _without_preamble(path: Path, stop_before_pixels: bool) -> Dataset:
    """A data set as old archives wrote them, without the 128 bytes and `DICM`: taken for one where its class says so."""
    try:
        found: Dataset = pydicom.dcmread(path, stop_before_pixels=stop_before_pixels, force=True)
        is_dicom = text(found, "SOPClassUID").startswith(_DICOM_UIDS)
    except Exception:  # noqa: BLE001  as in _read; what is no DICOM at all breaks in every way
        is_dicom = False
    if not is_dicom:
        raise UnusableError(NOT_DICOM)
    return found


def _with_syntax(found: Dataset) -> Dataset:
    """The transfer syntax that the file was read by, where its own header does not say."""
    if "TransferSyntaxUID" not in found.file_meta:
        found.file_meta.TransferSyntaxUID = _SYNTAXES[
            bool(found.original_encoding[0]), bool(found.original_encoding[1])
        ]
    return found


def is_native(header: Dataset) -> bool:
    """Whether the pixels lie in the file as they are, so that no decoder of compressed images is needed."""
    return header.file_meta.TransferSyntaxUID in (*_SYNTAXES.values(), DeflatedExplicitVRLittleEndian)


def text(header: Dataset, keyword: str, *, of_file: bool = False) -> str:
    """An element as text without space around it; empty where it is missing or cannot be read."""
    value = element(header.file_meta if of_file else header, keyword)
    return "" if value is None else str(value).replace("\0", "").strip()


def number(header: Dataset, keyword: str) -> float | None:
    """An element's first number; None where it is missing or no finite number."""
    found = numbers(header, keyword)
    return found[0] if found else None


def numbers(header: Dataset, keyword: str) -> tuple[float, ...]:
    """All numbers of an element; empty where it is missing or one of them is no finite number."""
    value = element(header, keyword)
    if value is None or value == "":
        return ()
    try:
        found = tuple(float(item) for item in (value if _is_many(value) else [value]))
    except (TypeError, ValueError, OverflowError):
        return ()
    return found if all(abs(item) < float("inf") for item in found) else ()


def element(header: Dataset, keyword: str) -> Any:
    """A value, or None: some elements of a broken file only fail when they are looked at."""
    try:
        return header.get(keyword)
    except Exception:  # noqa: BLE001  as in _read
        return None


def items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; empty where there is none."""
    value = element(header, keyword)
    return [item for item in value if isinstance(item, Dataset)] if _is_many(value) else []


def _is_many(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes)
