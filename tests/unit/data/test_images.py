"""Image bytes in, an upright RGB picture out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fedmed.data import images
from fedmed.data.images import image_size, is_readable, open_image
from fedmed.data.schema import ImageRef
from fedmed.errors import DataError

SECRET = "Jane-Doe-1961"


def test_a_cut_off_jpeg_is_unreadable_at_every_size(tmp_path: Path) -> None:
    for size in (8, 300):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))
        picture.save(tmp_path / "whole.jpg")
        whole = (tmp_path / "whole.jpg").read_bytes()
        assert is_readable(whole)
        assert not is_readable(whole[: len(whole) * 3 // 4])


def test_a_decompression_bomb_is_not_decoded(tmp_path: Path) -> None:
    side = int(images.MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    bomb = (tmp_path / "bomb.png").read_bytes()
    assert len(bomb) < 100_000
    assert not is_readable(bomb)
    with pytest.raises(DataError, match="cannot be decoded"):
        open_image(ImageRef(data=bomb), None)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (5, 3)).save(tmp_path / "x.png")
    image = open_image(ImageRef(path="x.png"), tmp_path)
    assert (image.mode, image.size) == ("RGB", (5, 3))


@pytest.mark.parametrize("turn", range(10))
@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_a_camera_that_was_turned_gives_an_upright_picture(tmp_path: Path, turn: int, name: str) -> None:
    """Pillow's own way is the reference."""
    picture = Image.fromarray(np.kron([[0, 90, 200], [30, 150, 255]], np.ones((8, 8))).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = turn
    picture.save(tmp_path / name, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
    data = (tmp_path / name).read_bytes()
    assert open_image(ImageRef(data=data), None).tobytes() == expected.tobytes()
    assert image_size(data) == expected.size == ((16, 24) if turn in (5, 6, 7, 8) else (24, 16))


def test_exif_that_is_none_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    Image.new("L", (5, 3)).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff")
    assert open_image(ImageRef(path="x.jpg"), tmp_path).size == (5, 3)
    assert image_size((tmp_path / "x.jpg").read_bytes()) == (5, 3)


def test_twelve_bits_in_sixteen_fill_the_grey_scale(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 2048, 4095]], np.uint16)).save(tmp_path / "x.png")
    image = open_image(ImageRef(path="x.png"), tmp_path)
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


BROKEN_REFS: dict[str, Callable[[Path], tuple[ImageRef, Path | None]]] = {
    "neither": lambda folder: (ImageRef(), folder),
    "both": lambda folder: (ImageRef(path="x.png", data=b"x"), folder),
    "no folder": lambda folder: (ImageRef(path="x.png"), None),
    "missing": lambda folder: (ImageRef(path=f"{SECRET}.png"), folder),
    "absolute": lambda folder: (ImageRef(path=str(folder / SECRET)), folder),
}


@pytest.mark.parametrize("kind", BROKEN_REFS)
def test_a_broken_reference_is_a_data_error_without_a_name(tmp_path: Path, kind: str) -> None:
    ref, folder = BROKEN_REFS[kind](tmp_path)
    with pytest.raises(DataError) as caught:
        open_image(ref, folder)
    assert SECRET not in caught.value.message + caught.value.hint
