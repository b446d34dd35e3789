"""A site's data on disk: FOLDER/manifest.jsonl, one example a line, and the images beside it.

    FOLDER/manifest.jsonl       {"patient": ..., "images": ["images/000001.png"], "question": ..., ...}
    FOLDER/images/000001.png    running numbers, never a name from the source

    >>> manifest = write_manifest(Path("site/data"), importer.read(path, split="train").examples)
    >>> manifest.num_patients, manifest.quarantined
    (4708, 0)

| in the folder                                       | what happens                                             |
| --------------------------------------------------- | -------------------------------------------------------- |
| line that is not a JSON object of the nine keys     | DataError with the line number                           |
| duplicated key, wrong type, unknown task or split   | DataError with the line number and the key               |
| image missing, or a path or link out of the folder  | DataError with the line number                           |
| image there but unreadable (see fedmed.data.images) | its example is quarantined and counted, the rest is read |
| no manifest, no example, or all quarantined         | DataError                                                |
| byte order mark, CRLF, blank lines                  | read as if they were not there                           |

An error never shows contents: neither values, nor unknown keys, nor the name of an image.
The privacy unit is the patient: two examples belong to the same person exactly when their `patient` is equal.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from fedmed.data.images import MAX_IMAGE_BYTES, ImageFolder, is_readable, open_image, read_image
from fedmed.data.manifest_line import MANIFEST_NAME, format_line, line_error, parse_line
from fedmed.data.schema import Example, ImageRef
from fedmed.errors import DataError
from fedmed.files import sync_folder

MAX_LINE_BYTES = 1 << 20
_PATH_BYTES = (
    16  # by how much an image's own path may be longer than the number that stands for it while a line is checked
)
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Manifest:
    """What a site trains on.

    Attributes:
        folder: what the images' paths are relative to.
        examples: those whose images decode, in the order of the file.
        sha256: over the manifest file and the bytes of every image it names.
        quarantined: examples left out because an image does not decode.
    """

    folder: Path = field(repr=False)
    examples: tuple[Example, ...] = field(repr=False)
    sha256: str
    quarantined: int

    @property
    def num_patients(self) -> int:
        return len(self.patients)

    @cached_property
    def patients(self) -> tuple[tuple[int, ...], ...]:
        """Per patient, sorted by patient id, the indices into `examples` of its records."""
        owned: dict[str, list[int]] = {}
        for index, example in enumerate(self.examples):
            owned.setdefault(example.patient, []).append(index)
        return tuple(tuple(owned[patient]) for patient in sorted(owned))

    def fingerprint(self, key: bytes) -> str:
        """HMAC-SHA256 of the content under the site's key: equal for equal data, and tells nothing without the key."""
        return hmac.new(key, self.sha256.encode(), hashlib.sha256).hexdigest()

    def pseudonyms(self, key: bytes) -> tuple[bytes, ...]:
        """Of every patient, in the order of `patients`; see `pseudonym`.

        Raises:
            DataError: two patients have one: their ids differ in nothing but space or the encoding of accents.
        """
        found = tuple(pseudonym(self.examples[records[0]].patient, key) for records in self.patients)
        if double := len(found) - len(set(found)):
            raise DataError(
                f"{double} patients of {MANIFEST_NAME} have another's id, but for space around it or how accents are encoded",
                "write an id in one way: a person under two ids would be counted, and lose privacy, twice",
            )
        return found

    def load_image(self, ref: ImageRef) -> Image.Image:
        """One picture in RGB. Raises DataError when it is gone or broken since the manifest was read."""
        return open_image(ref, self.folder)

    def images(self, example: Example) -> list[Image.Image]:
        """An example's pictures in RGB, in the order of the prompt."""
        return [self.load_image(ref) for ref in example.images]


def pseudonym(patient: str, key: bytes) -> bytes:
    """8 bytes that stand for a patient and tell nothing without the site's key: HMAC-SHA256, cut.

    Space around an id and the way its accents are encoded (Unicode NFC) make no difference. That any two of 100,000
    patients get the same pseudonym has a probability of 3e-10.
    """
    name = unicodedata.normalize("NFC", patient).strip()
    return hmac.new(key, b"patient\0" + name.encode(), hashlib.sha256).digest()[:8]


def read_pseudonyms(folder: Path, key: bytes) -> frozenset[bytes]:
    """Of all patients of the manifest file, without a look at the images. Raises DataError as `load_manifest` does."""
    lines = _lines(folder / MANIFEST_NAME, lambda line: None)
    return frozenset(pseudonym(parse_line(line, number).patient, key) for number, line in lines)


def write_manifest(folder: Path, examples: Iterable[Example], images_from: Path | None = None) -> Manifest:
    """Write examples and their images into `folder`, streaming, and read the result back.

    Guarantees: `manifest.jsonl` appears last and whole, by rename; on an error nothing is left behind but empty
    folders; files that another wrote are never touched. New folders are 0700 and files 0600. Examples of one patient with
    the same image bytes share one file; different patients never do, so that a file leads to one patient.

    Args:
        folder: made when missing; must not hold a manifest.
        examples: their images are bytes, or paths relative to `images_from`.

    Raises:
        DataError: the folder holds a manifest or images or cannot be written, an example breaks a rule of the format,
            or there is none.
    """
    path = folder / MANIFEST_NAME
    if path.exists():
        raise DataError(f"{path} exists", "choose another folder, or remove that one first: two imports never mix")
    try:
        _make_private(folder)
        _make_private(folder / "images")
        writer = _Writer(folder, images_from)
        try:
            writer.write(examples)
            if not writer.lines:
                raise DataError(f"there is no example to write into {folder}", "has the source rows of that split?")
        except BaseException:
            writer.discard()
            raise
        writer.commit()
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}") from None
    return load_manifest(folder)


def load_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, every line and every image checked and hashed.

    Raises:
        DataError: as the table above says.
    """
    digest = hashlib.sha256()
    check = _ImageCheck(folder)
    examples, total = [], 0
    for number, line in _lines(folder / MANIFEST_NAME, digest.update):
        example = parse_line(line, number)
        total += 1
        try:
            readable = [check(ref.path) for ref in example.images]
        except DataError as error:
            raise DataError(f"{MANIFEST_NAME} line {number}: {error.message}", error.hint) from None
        if all(readable):
            examples.append(example)
    _require_examples(folder, total, len(examples))
    for image_digest in check.digests:
        digest.update(image_digest)
    return Manifest(folder, tuple(examples), digest.hexdigest(), total - len(examples))


class _ImageCheck:
    """Whether an image decodes; each file is read once, however many examples share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = ImageFolder(folder)
        self._seen: dict[str, bool] = {}
        self.digests: list[bytes] = []

    def __call__(self, relative: str) -> bool:
        if relative not in self._seen:
            self._seen[relative] = self._read(relative)
        return self._seen[relative]

    def _read(self, relative: str) -> bool:
        path, size = self._folder.locate(relative)
        try:
            with path.open("rb") as file:
                if size > MAX_IMAGE_BYTES:
                    self.digests.append(hashlib.file_digest(file, "sha256").digest())
                    return False
                data = file.read()
        except OSError:
            raise DataError("an image file cannot be read", "the site's user needs read access to it") from None
        self.digests.append(hashlib.sha256(data).digest())
        return is_readable(data)


class _Writer:
    """Writes images under running numbers and lines into a `.part` file, which `commit` renames."""

    def __init__(self, folder: Path, images_from: Path | None) -> None:
        self._folder = folder
        self._images_from = images_from
        self._part = folder / f"{MANIFEST_NAME}.part"
        self._paths: dict[tuple[str, bytes], str] = {}
        self.lines = 0
        if self._part.exists():
            self.discard()  # what an interrupted import left: files of patients that no manifest names
        elif any((folder / "images").iterdir()):
            raise DataError(
                f"{folder / 'images'} holds files", "choose a new folder: an import never mixes with others"
            )

    def write(self, examples: Iterable[Example]) -> None:
        with _create(self._part) as file:
            for self.lines, example in enumerate(examples, start=1):
                line = format_line(example, [f"images/{place:06d}" for place, _ in enumerate(example.images)])
                parse_line(line, self.lines)  # refuses it before its images are written
                if len(line) + _PATH_BYTES * len(example.images) > MAX_LINE_BYTES:
                    raise line_error(self.lines, f"is longer than {MAX_LINE_BYTES} bytes")
                file.write(format_line(example, [self._save(example.patient, ref) for ref in example.images]))
            file.flush()
            os.fsync(file.fileno())

    def _save(self, patient: str, ref: ImageRef) -> str:
        data = read_image(ref, self._images_from)
        key = (patient, hashlib.sha256(data).digest())
        if key not in self._paths:
            ending = "jpg" if data.startswith(b"\xff\xd8") else "png"
            relative = f"images/{len(self._paths) + 1:06d}.{ending}"
            with _create(self._folder / relative) as file:
                file.write(data)
            self._paths[key] = relative
        return self._paths[key]

    def commit(self) -> None:
        self._part.rename(self._folder / MANIFEST_NAME)
        sync_folder(self._folder)

    def discard(self) -> None:
        """The lines go last: what lies beside them is then known for an import's own."""
        for path in [*(self._folder / "images").glob("[0-9]" * 6 + "*.[jp][pn]g"), self._part]:
            path.unlink(missing_ok=True)


def _lines(path: Path, update: Callable[[bytes], None]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines from 1, without blank ones; every byte of the file passes through `update`."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: _bounded_line(file), b""), start=1):
                if len(line) > MAX_LINE_BYTES:
                    raise line_error(number, f"is longer than {MAX_LINE_BYTES} bytes")
                update(line)
                content = line.removeprefix(_BOM) if number == 1 else line
                if content.strip():
                    yield number, content
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}",
            "make it with `fedmed-site import`, or write one by docs/data.md",
        ) from None


def _bounded_line(file: BinaryIO) -> bytes:
    return file.readline(MAX_LINE_BYTES + 1)


def _make_private(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _create(path: Path) -> BinaryIO:
    """A new file that only its owner can read, whatever the umask."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _require_examples(folder: Path, total: int, kept: int) -> None:
    if not total:
        raise DataError(
            f"{folder / MANIFEST_NAME} holds no example", "import a data set into the folder: `fedmed-site import`"
        )
    if not kept:
        raise DataError(
            f"none of the {total} examples has readable images", "expected whole PNG or JPEG files beside the manifest"
        )
