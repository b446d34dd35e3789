"""Headers and frames: what each file of pydicom's comes to, multi-frame files, and a decoder that dies."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from helpers_dicom import TEST_FILES, enhanced, image, save

from hospital_client.dicom import faults
from hospital_client.dicom.decoder import Decoder
from hospital_client.dicom.display import Frame, Window, show
from hospital_client.dicom.faults import UnusableError
from hospital_client.dicom.frames import frame_count, frame_header, planes, read_frame
from hospital_client.dicom.headers import quiet, read_header

COMPRESSED = (
    "SC_rgb_jpeg_gdcm.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_RLE.dcm",
    "examples_ybr_color.dcm",
)


def reason_of(path: Path) -> str:
    try:
        with quiet():
            frame_count(read_header(path))
            read_frame(path, 0)
    except UnusableError as fault:
        return fault.reason
    raise AssertionError("it was read")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("README.txt", faults.NOT_DICOM),
        ("zipMR.gz", faults.NOT_DICOM),
        ("dicomdirtests/DICOMDIR", faults.DIRECTORY),
        ("dicomdirtests/DICOMDIR-bigEnd", faults.DIRECTORY),
        ("dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM000000", faults.NO_IMAGE),
        ("MR_truncated.dcm", faults.SHORT_PIXELS),
        ("JPEG2000-embedded-sequence-delimiter.dcm", faults.BAD_PIXELS),
        ("JPEG-lossy.dcm", faults.NO_DECODER),
        ("badVR.dcm", faults.BAD_HEADER),
        ("rtplan.dcm", faults.NO_IMAGE),
    ],
)
def test_a_file_that_is_no_usable_image_says_why(name: str, reason: str) -> None:
    assert reason_of(TEST_FILES / name) == reason


def test_cut_off_anywhere_is_a_reason_and_never_a_crash(tmp_path: Path) -> None:
    whole = (TEST_FILES / "CT_small.dcm").read_bytes()
    for size in range(0, len(whole) - 200, 997):
        path = tmp_path / "cut"
        path.write_bytes(whole[:size])
        assert reason_of(path)


@pytest.mark.parametrize("name", ["MR_small_bigendian.dcm", "MR_small_implicit.dcm", "image_dfl.dcm"])
def test_old_and_unusual_forms_of_a_file_are_read(name: str) -> None:
    with quiet():
        assert read_frame(TEST_FILES / name, 0).ndim == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Rows": 0}, faults.BAD_HEADER),
        ({"Rows": 60000, "Columns": 60000}, faults.TOO_LARGE),
        ({"NumberOfFrames": -2}, faults.BAD_HEADER),
        ({"NumberOfFrames": 2_000_000_000}, faults.TOO_LARGE),
        ({"PixelData": None}, faults.NO_PIXELS),
        ({"PhotometricInterpretation": None}, faults.BAD_HEADER),
    ],
)
def test_a_header_that_cannot_be_is_refused_before_its_pixels_are_decoded(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    found = image(np.zeros((4, 4), dtype=np.uint16))
    for keyword, value in changes.items():
        delattr(found, keyword) if value is None else setattr(found, keyword, value)
    assert reason_of(save(tmp_path / "file", found)) == reason


def test_an_enhanced_file_has_rescale_window_and_place_of_each_frame(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "enhanced")
    header = read_header(path)
    assert frame_count(header) == 2
    assert [item.position[2] for item in planes(header, 2)] == [3, 2]
    assert {item.orientation for item in planes(header, 2)} == {(1, 0, 0, 0, 1, 0)}
    shown = [show([Frame(read_frame(path, at), frame_header(header, at))], Window())[0][0, 0] for at in (0, 1)]
    assert shown == [31, 133]


def test_pydicom_tells_nothing_of_a_patient_while_a_file_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    found = image(np.zeros((4, 4), dtype=np.uint16))
    path = save(tmp_path / "file", found)
    path.write_bytes(path.read_bytes().replace(b"1.2.3.1\0", b"SECRET-X"))
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        with quiet():
            assert read_header(path).SeriesInstanceUID == "SECRET-X"
            warnings.warn("SECRET that no setting of pydicom's silences", stacklevel=1)
        assert not caught
        assert "SECRET" not in caplog.text + "".join(capfd.readouterr())
        assert pydicom.dcmread(path).SeriesInstanceUID == "SECRET-X"
        assert "SECRET" in caplog.text + str([item.message for item in caught]), "the test would not see it"


@pytest.mark.parametrize("name", COMPRESSED)
def test_the_child_decodes_as_this_process_does(name: str) -> None:
    with quiet(), Decoder() as decoder:
        assert np.array_equal(decoder.read(TEST_FILES / name, 0), read_frame(TEST_FILES / name, 0))


def test_lossless_forms_give_the_numbers_of_the_uncompressed_file() -> None:
    with quiet():
        plain = read_frame(TEST_FILES / "MR_small.dcm", 0)
        for name in ("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"):
            assert np.array_equal(read_frame(TEST_FILES / name, 0), plain)


def test_a_decoder_that_dies_or_hangs_costs_one_file(tmp_path: Path) -> None:
    good = TEST_FILES / "MR_small_RLE.dcm"
    with Decoder(seconds=20) as decoder:
        assert decoder.read(good, 0).shape == (64, 64)
        child = decoder._child
        assert child is not None
        os.kill(child.pid, 9)
        child.wait()
        with pytest.raises(UnusableError, match=faults.BAD_PIXELS):
            decoder.read(good, 0)
        assert decoder.read(good, 0).shape == (64, 64)
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        decoder._seconds = 0.2
        with pytest.raises(UnusableError, match=faults.BAD_PIXELS):
            decoder.read(pipe, 0)


def test_a_damaged_jpeg_that_aborts_its_decoder_costs_one_file(tmp_path: Path) -> None:
    """In GDCM 3.2.6 this byte ends in `terminate called`; that of another version may only refuse it."""
    damaged = bytearray((TEST_FILES / "MR_small_jpeg_ls_lossless.dcm").read_bytes())
    damaged[damaged.find(b"\xe0\x7f\x10\x00") + 12 + 22] = 88
    (tmp_path / "file").write_bytes(damaged)
    with Decoder() as decoder:
        with pytest.raises(UnusableError, match=faults.BAD_PIXELS):
            decoder.read(tmp_path / "file", 0)
        assert decoder.read(TEST_FILES / "MR_small_jpeg_ls_lossless.dcm", 0).shape == (64, 64)


@pytest.mark.parametrize("implicit", [False, True])
def test_a_data_set_without_preamble_is_read(tmp_path: Path, implicit: bool) -> None:
    found = image(np.arange(16, dtype=np.uint16).reshape(4, 4))
    del found.file_meta
    path = tmp_path / "bare"
    found.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    assert not path.read_bytes().startswith(b"\0" * 128)
    with quiet():
        assert read_frame(path, 0).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
