"""A series as the pictures that a model sees: PNG, 8 bits, no text of the header in it.

    for png in pictures(series, Look(montage=(3, 3)), decoder): ...

| a series of                      | gives                                                                  |
| -------------------------------- | ---------------------------------------------------------------------- |
| CT, MR, PET, NM                  | one picture: the middle slice, or a montage of evenly spread slices    |
| X-ray, mammography and the rest  | one picture a file; of a file with many frames the middle, or a montage |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fedmed.data.images import encode_png
from hospital_client.dicom.archive import VOLUMES, Series
from hospital_client.dicom.decoder import Decoder
from hospital_client.dicom.display import Frame, Window, show
from hospital_client.dicom.faults import MIXED, NO_SLICES, UnusableError
from hospital_client.dicom.frames import frame_header, read_frame
from hospital_client.dicom.headers import is_native, quiet, read_header
from hospital_client.dicom.slices import Slice, order, spread


@dataclass(frozen=True)
class Look:
    """How pictures are made.

    Attributes:
        montage: rows and columns of slices; (1, 1) is the middle slice alone.
        max_side: a larger picture is made smaller, to this; 0 leaves it as it is.
    """

    window: Window = field(default_factory=Window)
    montage: tuple[int, int] = (1, 1)
    max_side: int = 1024


def pictures(series: Series, look: Look, decoder: Decoder) -> Iterator[bytes]:
    """PNG files, one after the other. Raises UnusableError: the whole series is left out."""
    if series.fault or not series.slices:
        raise UnusableError(series.fault or NO_SLICES)
    for group in _groups(series):
        ordered = order(group)
        rows, columns = look.montage
        chosen = [ordered[index] for index in spread(len(ordered), rows * columns)]
        with quiet():
            shown = show([_frame(item, decoder) for item in chosen], look.window)
        yield encode_png(_smaller(_tiled(shown, columns), look.max_side))


def _groups(series: Series) -> list[list[Slice]]:
    if series.modality in VOLUMES:
        return [series.slices]
    files: dict[str, list[Slice]] = {}
    for item in sorted(series.slices, key=lambda item: item.order):
        files.setdefault(item.path, []).append(item)
    return list(files.values())


def _frame(item: Slice, decoder: Decoder) -> Frame:
    path = Path(item.path)
    header = read_header(path)
    stored = read_frame(path, item.frame) if is_native(header) else decoder.read(path, item.frame)
    return Frame(stored, frame_header(header, item.frame))


def _tiled(shown: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size side by side, black where there are fewer than the grid has places."""
    if len({picture.shape for picture in shown}) > 1:
        raise UnusableError(MIXED)
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    height, width, *colors = shown[0].shape
    grid = np.zeros((rows * height, columns * width, *colors), dtype=np.uint8)
    for index, picture in enumerate(shown):
        top, left = index // columns * height, index % columns * width
        grid[top : top + height, left : left + width] = picture
    return grid


def _smaller(pixels: np.ndarray, max_side: int) -> np.ndarray:
    longest = max(pixels.shape[:2])
    if not max_side or longest <= max_side:
        return pixels
    height, width = (max(1, round(side * max_side / longest)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
