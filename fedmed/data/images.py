"""Image bytes in, RGB picture out; nothing a hostile file does escapes as anything but a DataError.

    >>> open_image(ImageRef(data=png_bytes), None).mode
    'RGB'

| the image                                         | what happens                                        |
| ------------------------------------------------- | --------------------------------------------------- |
| PNG or JPEG of any mode                           | RGB; alpha is dropped                               |
| EXIF says how the camera was held                 | turned upright, as every viewer shows it            |
| 16 or 32 bits per pixel                           | scaled by its own maximum: many hold 12 bits only   |
| zero bytes, cut off, another format, random bytes | DataError; a manifest quarantines its example       |
| more than MAX_PIXELS or MAX_IMAGE_BYTES           | the same: refused before it is decoded              |
| path absolute, with `..`, or a link out of folder | DataError: never opened                             |
| path that is a folder, pipe or device             | DataError: never opened                             |

No message names a file: the name of a patient's image may identify the patient.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from fedmed.data.schema import ImageRef
from fedmed.errors import DataError

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 1 << 26  # 67 megapixels: above any radiograph, far below what exhausts the memory
MAX_IMAGE_BYTES = 1 << 28
_ORIENTATION = 0x0112  # of EXIF: 1 is upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(ref: ImageRef, folder: Path | None) -> Image.Image:
    """The picture of `ref` in RGB, fully decoded.

    Args:
        folder: what `ref.path` is relative to; may be None for a reference that holds its bytes.

    Raises:
        DataError: missing, outside the folder, or not decodable.
    """
    return decode(read_image(ref, folder))


def read_image(ref: ImageRef, folder: Path | None) -> bytes:
    """The encoded bytes of `ref`, not decoded.

    Raises:
        DataError: missing, outside the folder, or too large to be an image.
    """
    if bool(ref.path) == bool(ref.data):
        raise DataError("an image reference holds both a path and bytes, or neither; expected exactly one")
    if ref.data:
        return ref.data
    if folder is None:
        raise DataError("an image is given by path without the folder that it is relative to")
    path, size = locate(folder, ref.path)
    if size > MAX_IMAGE_BYTES:
        raise DataError(f"an image file of {size} bytes is too large, expected at most {MAX_IMAGE_BYTES}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"an image file cannot be read ({os.strerror(error.errno or 0)})") from None


def decode(data: bytes) -> Image.Image:
    """PNG or JPEG bytes as an RGB picture. Raises DataError for anything else."""
    try:
        image = _open(data)
        turn = _turn(image)
        image.load()
        picture = _to_rgb(image)
        return picture if turn is None else picture.transpose(turn)
    except Exception:  # noqa: BLE001  a decoder that meets hostile bytes raises nearly anything
        raise DataError("an image cannot be decoded", "expected a whole PNG or JPEG file") from None


def is_readable(data: bytes) -> bool:
    """Whether `decode` would succeed; a large JPEG is only decoded at an eighth of its size, which is quick and
    still walks through the whole file."""
    try:
        image = _open(data)
        image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
    except Exception:  # noqa: BLE001  as in decode
        return False
    return True


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of PNG or JPEG bytes once decoded, by the header alone. Raises DataError for anything else."""
    try:
        image = _open(data)
        lies = _turn(image) in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
        return (image.height, image.width) if lies else image.size
    except Exception:  # noqa: BLE001  as in decode
        raise DataError("an image cannot be decoded", "expected a whole PNG or JPEG file") from None


def encode_png(pixels: np.ndarray) -> bytes:
    """Pixels, uint8 [height, width] or [height, width, 3], as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def locate(folder: Path, relative: str) -> tuple[Path, int]:
    """The file `relative` inside `folder` and its size in bytes. For many of one folder, an ImageFolder is quicker.

    Raises:
        DataError: the path is absolute or leaves the folder, or there is no regular file.
    """
    return ImageFolder(folder).locate(relative)


class ImageFolder:
    """A folder whose images are looked up; links are followed, but not out of the folder.

    Where each subfolder really lies is asked once: resolving every path anew takes longer than decoding a small image.
    """

    def __init__(self, folder: Path) -> None:
        self._root = os.path.realpath(folder)
        self._real: dict[str, str] = {}

    def locate(self, relative: str) -> tuple[Path, int]:
        """As the function of that name."""
        parts = PurePosixPath(relative).parts
        if not parts or relative.startswith("/") or ".." in parts or "\\" in relative or "\0" in relative:
            raise DataError("an image path leaves the folder", "expected a relative path such as images/000001.png")
        path = os.path.join(self._parent("/".join(parts[:-1])), parts[-1])
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                path = self._inside(os.path.realpath(path))
                status = os.stat(path)
        except OSError:
            raise DataError(
                "an image file does not exist", "copy the images beside the manifest, or import again"
            ) from None
        if not stat.S_ISREG(status.st_mode):
            raise DataError("an image path is not a regular file")
        return Path(path), status.st_size

    def _parent(self, relative: str) -> str:
        """Where a subfolder really lies."""
        if relative not in self._real:
            self._real[relative] = self._inside(os.path.realpath(os.path.join(self._root, relative)))
        return self._real[relative]

    def _inside(self, real: str) -> str:
        if real != self._root and not real.startswith(self._root.rstrip(os.sep) + os.sep):
            raise DataError("an image path is a link out of the folder", "copy the image into the folder")
        return real


def _open(data: bytes) -> Image.Image:
    """An image whose header alone was read; refuses one with too many pixels before they are decoded."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"an image of {image.width} x {image.height} pixels is too large")
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes an image whose header alone was read upright; None where it is, or its EXIF is no EXIF."""
    if "exif" not in image.info:  # asking for it would decode a PNG
        return None
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  as in decode; the pixels are there all the same
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image, dtype=np.float64)
        scaled = pixels * (255.0 / max(float(pixels.max()), 1.0))
        image = Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))
    return image.convert("RGB")
