"""8-bit pixels of a frame: equal to pydicom's own LUT and window, on the files it ships and on drawn ones."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers_dicom import TEST_FILES, image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing, pixel_array

from hospital_client.dicom.display import Frame, Window, show
from hospital_client.dicom.frames import frame_header, read_frame
from hospital_client.dicom.headers import quiet, read_header


def shown(found: Dataset, window: Window | None = None) -> np.ndarray:
    with quiet():
        return show([Frame(pixel_array(found), frame_header(found, 0))], window or Window())[0]


@cache
def windowed_files() -> tuple[str, ...]:
    """Of the files that pydicom ships: gray, one frame, with a window, and whole."""
    names = []
    with quiet():
        for path in sorted(TEST_FILES.rglob("*")):
            try:
                found = pydicom.dcmread(path)
                usable = "WindowCenter" in found and found.pixel_array.ndim == 2
            except Exception:  # noqa: BLE001  the broken ones of the folder
                usable = False
            if usable:
                names.append(path.relative_to(TEST_FILES).as_posix())
    return tuple(names)


def reference(found: Dataset) -> np.ndarray:
    """pydicom's window, from its own range of output to 0 ... 255."""
    with np.errstate(over="ignore"):
        values = apply_windowing(apply_modality_lut(found.pixel_array, found), found)
        low, high = apply_windowing(np.array([-1e12, 1e12]), found)
    pixels = (values - low) / (high - low) * 255.0
    return 255.0 - pixels if found.PhotometricInterpretation == "MONOCHROME1" else pixels


def test_there_are_enough_shipped_files_to_compare_with() -> None:
    assert len(windowed_files()) >= 40


@pytest.mark.parametrize("name", windowed_files())
def test_a_shipped_file_is_shown_as_pydicom_shows_it(name: str) -> None:
    path = TEST_FILES / name
    with quiet():
        found = pydicom.dcmread(path)
        ours = show([Frame(read_frame(path, 0), frame_header(read_header(path), 0))], Window())[0]
        expected = reference(found)
        seen = np.ones(ours.shape, dtype=bool)
        if "PixelPaddingValue" in found:
            seen = found.pixel_array != found.PixelPaddingValue
    assert ours.dtype == np.uint8
    assert np.abs(ours[seen] - expected[seen]).max() <= 0.5 + 1e-6
    assert not ours[~seen].any()


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_windows_are_pydicoms_for_drawn_numbers(function: str | None, photometric: str, dtype: Any) -> None:
    rng = np.random.default_rng(7)
    for _ in range(20):
        info = np.iinfo(dtype)
        pixels = rng.integers(info.min, info.max, (16, 16), dtype=dtype, endpoint=True)
        found = image(
            pixels, VOILUTFunction=function, PhotometricInterpretation=photometric,
            RescaleSlope=round(float(rng.uniform(0.1, 4)), 3), RescaleIntercept=round(float(rng.uniform(-2000, 2000)), 3),
            WindowCenter=round(float(rng.uniform(-3000, 3000)), 3), WindowWidth=round(float(rng.uniform(1, 9000)), 3),
        )  # fmt: skip
        assert np.abs(shown(found) - reference(found)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_voi_lut_is_pydicoms(bits: int) -> None:
    rng = np.random.default_rng(bits)
    item = Dataset()
    item.LUTDescriptor = [200, 50, bits]
    item.LUTData = rng.integers(0, 1 << bits, 200).tolist()
    found = image(rng.integers(0, 256, (16, 16), dtype=np.uint16), VOILUTSequence=[item], WindowCenter=9, WindowWidth=9)
    with quiet():
        expected = apply_voi(found.pixel_array.clip(50, 249), found) * (255.0 / (2**bits - 1))
    assert np.abs(shown(found) - expected).max() <= 0.5 + 1e-6


def test_a_modality_lut_comes_before_the_window() -> None:
    item = Dataset()
    item.LUTDescriptor = [4, 0, 16]
    item.LUTData = [0, 200, 300, 1000]
    item.ModalityLUTType = "US"
    pixels = np.arange(4, dtype=np.uint16).reshape(2, 2)
    found = image(pixels, ModalityLUTSequence=[item], WindowCenter=500.5, WindowWidth=1001)
    assert shown(found).tolist() == [[0, 51], [76, 255]]


def test_the_first_window_or_a_chosen_one() -> None:
    found = image(np.array([[0, 40], [80, 400]], dtype=np.int16), WindowCenter=[40, 200], WindowWidth=[80, 400])
    wide = image(found.pixel_array, WindowCenter=200, WindowWidth=400)
    assert shown(found, Window(index=1)).tolist() == shown(wide).tolist() != shown(found).tolist()
    assert shown(found, Window(index=7)).tolist() == shown(wide).tolist()
    assert shown(found, Window(center=200, width=400)).tolist() == shown(wide).tolist()


@pytest.mark.parametrize(
    "window", [{}, {"WindowCenter": 4, "WindowWidth": 0}, {"WindowCenter": [1, 2], "WindowWidth": 3}]
)
def test_without_a_window_the_percentiles_decide_and_one_hot_pixel_does_not(window: dict[str, Any]) -> None:
    pixels = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    pixels[0, 0] = 65000
    result = shown(image(pixels, **window))
    low, high = np.percentile(pixels, (0.5, 99.5))
    assert result[10, 0] == round((pixels[10, 0] - low) / (high - low) * 255)
    assert result[0, 0] == 255


def test_padding_is_black_and_does_not_move_the_percentiles() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 200, (32, 32)).astype(np.int16)
    padded = pixels.copy()
    padded[:16] = -2000
    padded[16] = -1990
    result = shown(
        image(padded, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990, PhotometricInterpretation="MONOCHROME1")
    )
    assert not result[:17].any()
    low, high = np.percentile(pixels[17:], (0.5, 99.5))
    assert result[20, 3] == 255 - round(float(np.clip((pixels[20, 3] - low) / (high - low), 0, 1)) * 255)


@pytest.mark.parametrize(("value", "expected"), [(5, 0), (0, 0)])
def test_a_flat_picture_is_no_division_by_zero(value: int, expected: int) -> None:
    assert (shown(image(np.full((4, 4), value, dtype=np.uint16))) == expected).all()


def test_overlay_bits_above_the_stored_ones_are_not_drawn() -> None:
    clean = np.arange(-32, 32, dtype=np.int16).reshape(8, 8)
    dirty = (clean & 0x0FFF) | 0x7000
    attributes = {"BitsStored": 12, "WindowCenter": 0, "WindowWidth": 64}
    assert shown(image(dirty.astype(np.int16), **attributes)).tolist() == shown(image(clean, **attributes)).tolist()


def test_colours_of_8_and_16_bits_and_of_a_palette() -> None:
    rng = np.random.default_rng(3)
    colors = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    assert shown(image(colors)).tolist() == colors.tolist()
    assert shown(image(colors.astype(np.uint16) * 257)).tolist() == colors.tolist()
    palette = image(np.array([[0, 1], [2, 3]], dtype=np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for index, color in enumerate(("Red", "Green", "Blue")):
        setattr(palette, f"{color}PaletteColorLookupTableDescriptor", [4, 0, 16])
        table = (np.arange(4, dtype=np.uint16) * 20 + index) * 257
        setattr(palette, f"{color}PaletteColorLookupTableData", table.tobytes())
    assert shown(palette).tolist() == [[[0, 1, 2], [20, 21, 22]], [[40, 41, 42], [60, 61, 62]]]


@pytest.mark.parametrize(
    "name",
    [
        "examples_rgb_color.dcm",
        "examples_palette.dcm",
        "examples_jpeg2k.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
    ],
)
def test_shipped_colour_files_are_shown_in_rgb(name: str) -> None:
    path = TEST_FILES / name
    with quiet():
        found = pydicom.dcmread(path)
        pixels = show([Frame(read_frame(path, 0), frame_header(read_header(path), 0))], Window())[0]
    assert pixels.shape == (found.Rows, found.Columns, 3)
    assert pixels.dtype == np.uint8
    assert len(np.unique(pixels)) > 1
