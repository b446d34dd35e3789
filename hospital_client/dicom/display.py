"""One frame's stored numbers as 8-bit pixels, as a viewer would show them: PS3.3 C.7.6.3, C.11.1 and C.11.2.

    shown = show([Frame(stored, header)], Window())[0]      uint8 [height, width], or [height, width, 3]

| the header has                       | what happens                                                              |
| ------------------------------------ | ------------------------------------------------------------------------- |
| modality LUT, or slope and intercept | applied first; of a multi-frame file, those of the frame                  |
| VOI LUT                              | applied, unless a window was chosen                                       |
| several windows                      | the first, or the one chosen by number; a number too high: the last       |
| no window, or one of no width        | from the 0.5th to the 99.5th percentile of the series, padding left out   |
| MONOCHROME1                          | inverted: in every picture made here the larger value is the brighter one |
| pixel padding value, or a range      | black                                                                     |
| RGB, YBR of any kind, a palette      | RGB, its own bits per sample scaled to 8                                  |
| PET                                  | see `hospital_client.dicom.pet`                                           |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from hospital_client.dicom.faults import BAD_HEADER, UnusableError
from hospital_client.dicom.headers import items, number, numbers, text
from hospital_client.dicom.pet import MOST_SUV, suv_factor

PERCENTILES = (0.5, 99.5)
_PALETTE = "PALETTE COLOR"
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True)
class Frame:
    """Stored numbers [height, width] or [height, width, 3] (YBR already as RGB), and what describes them.

    Attributes:
        header: the attributes of the frame, flat: see `hospital_client.dicom.frames.frame_header`.
    """

    stored: np.ndarray
    header: Dataset


@dataclass(frozen=True)
class Window:
    """Which window to show: the `index`-th (from 0) of the file, or `center` and `width` in rescaled numbers."""

    index: int = 0
    center: float = 0.0
    width: float = 0.0


@dataclass(frozen=True)
class _Gray:
    """A frame's rescaled numbers, and which pixels are padding."""

    values: np.ndarray
    padding: np.ndarray
    header: Dataset


def show(frames: Sequence[Frame], window: Window) -> list[np.ndarray]:
    """8-bit pixels of frames that are shown together: those without a window share one.

    Raises:
        UnusableError: a header that contradicts itself, or frames of which some are gray and some are not.
    """
    try:
        if all(text(frame.header, "PhotometricInterpretation") in _MONOCHROME for frame in frames):
            return _show_gray([_rescaled(frame) for frame in frames], window)
        return [_colors(frame) for frame in frames]
    except UnusableError:
        raise
    except Exception:  # noqa: BLE001  LUTs and their descriptors come in every wrong form
        raise UnusableError(BAD_HEADER) from None


def _rescaled(frame: Frame) -> _Gray:
    values = np.asarray(apply_modality_lut(frame.stored, frame.header))
    return _Gray(values, _padding(frame.stored, frame.header), frame.header)


def _padding(stored: np.ndarray, header: Dataset) -> np.ndarray:
    first = number(header, "PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, dtype=bool)
    last = number(header, "PixelPaddingRangeLimit")
    low, high = sorted((first, first if last is None else last))
    return (stored >= low) & (stored <= high)


def _show_gray(frames: list[_Gray], window: Window) -> list[np.ndarray]:
    limits: tuple[float, float] | None = None
    shown = []
    for frame in frames:
        parts = _windowed(frame, window)
        if parts is None:
            limits = limits or _limits(frames)
            parts = (frame.values - limits[0]) / (limits[1] - limits[0])
        pixels = np.rint(np.clip(parts, 0.0, 1.0) * 255.0).astype(np.uint8)
        if text(frame.header, "PhotometricInterpretation") == "MONOCHROME1":
            pixels = 255 - pixels
        pixels[frame.padding] = 0
        shown.append(pixels)
    return shown


def _windowed(frame: _Gray, window: Window) -> np.ndarray | None:
    """Brightness from 0 to 1; None where the percentiles of the series decide."""
    header = frame.header
    if window.width:
        return _by_function(frame.values, window.center, window.width, "LINEAR")
    if text(header, "Modality") == "PT":
        factor = suv_factor(header)
        return None if factor is None else frame.values * (factor / MOST_SUV)
    if tables := items(header, "VOILUTSequence"):
        return _by_table(frame.values, tables[min(window.index, len(tables) - 1)])
    centers, widths = numbers(header, "WindowCenter"), numbers(header, "WindowWidth")
    if not centers or len(centers) != len(widths):
        return None
    index = min(window.index, len(centers) - 1)
    return _by_function(frame.values, centers[index], widths[index], text(header, "VOILUTFunction") or "LINEAR")


def _by_function(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray | None:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if width <= 0 or (function == "LINEAR" and width < 1):
        return None
    values = values.astype(np.float64)
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0:
        return (values > center).astype(np.float64)
    return (values - center) / width + 0.5


def _by_table(values: np.ndarray, item: Dataset) -> np.ndarray:
    """A VOI LUT: below its first number the first entry, above its last the last."""
    count, first, bits = (int(entry) for entry in item.LUTDescriptor)
    entries = _entries(item, count or 1 << 16)
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1)
    return np.asarray(entries[index] / (2.0**bits - 1.0))


def _entries(item: Dataset, count: int) -> np.ndarray:
    data = item.LUTData
    if not isinstance(data, bytes):
        return np.asarray(data, dtype=np.float64)[:count]
    order = "<" if item.original_encoding[1] is not False else ">"
    return np.frombuffer(data, dtype=f"{order}u{2 if len(data) >= 2 * count else 1}").astype(np.float64)[:count]


def _limits(frames: list[_Gray]) -> tuple[float, float]:
    """The window of frames that bring none. PET starts at 0: no uptake is black."""
    seen = np.concatenate([frame.values[~frame.padding] for frame in frames])
    seen = seen[np.isfinite(seen)] if seen.dtype.kind == "f" else seen
    if not seen.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(seen, PERCENTILES))
    if high <= low:
        low, high = float(seen.min()), float(seen.max())
    if text(frames[0].header, "Modality") == "PT":
        low = 0.0
    return (low, high) if high > low else (low, low + 1.0)


def _colors(frame: Frame) -> np.ndarray:
    if text(frame.header, "PhotometricInterpretation") == _PALETTE:
        colors = np.asarray(apply_color_lut(frame.stored, frame.header))
        bits = colors.dtype.itemsize * 8
    else:
        colors, bits = frame.stored, int(frame.header.BitsStored)
    if colors.ndim != 3 or colors.shape[2] != 3 or colors.dtype.kind != "u":
        raise UnusableError(BAD_HEADER)
    return colors if bits == 8 else np.rint(colors * (255.0 / (2.0**bits - 1.0))).astype(np.uint8)
