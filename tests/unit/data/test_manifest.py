"""The manifest: what is written is read back; what is wrong is named by line and never shown."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmed.data.images import encode_png
from fedmed.data.manifest import MANIFEST_NAME, MAX_LINE_BYTES, load_manifest, write_manifest
from fedmed.data.schema import Example, Exchange, ImageRef
from fedmed.errors import DataError

SECRET = "Jane-Doe-1961"


def png(shade: int = 0, size: int = 4) -> bytes:
    return encode_png(np.full((size, size), shade, np.uint8))


def example(patient: str = "p1", image: bytes | None = None, **changes: Any) -> Example:
    fields: dict[str, Any] = {
        "patient": patient,
        "images": (ImageRef(data=png() if image is None else image),),
        "question": "Is there an opacity?",
        "answer": "yes",
        "answer_type": "closed",
        "task": "vqa",
        "source": "made",
        "attributes": {"label": "a"},
    }
    return Example(**(fields | changes))


def row(**changes: Any) -> dict[str, Any]:
    fields = {
        "patient": SECRET,
        "images": [f"images/{SECRET}.png"],
        "question": "q",
        "answer": "a",
        "answer_type": "open",
        "task": "report",
        "source": "s",
        "split": "val",
        "attributes": {},
    }
    return fields | changes


def lay_out(folder: Path, *rows: dict[str, Any], raw: bytes | None = None) -> Path:
    """A manifest folder by hand, its image named after the patient as a hospital's might be."""
    (folder / "images").mkdir(parents=True)
    (folder / "images" / f"{SECRET}.png").write_bytes(png())
    lines = "".join(json.dumps(item) + "\n" for item in rows)
    (folder / MANIFEST_NAME).write_bytes(lines.encode() if raw is None else raw)
    return folder


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    made = [
        example("p2", answer="Größe ≥ 3 cm\u2028", split="test"),
        example("p1", images=()),
        example("p2", png(9), answer_type="open"),
        example("p1", images=(ImageRef(data=png(1)), ImageRef(data=png(2)))),
    ]
    manifest = write_manifest(tmp_path / "site", made)
    assert [item.answer for item in manifest.examples] == [item.answer for item in made]
    assert [item.attributes for item in manifest.examples] == [item.attributes for item in made]
    assert manifest.patients == ((1, 3), (0, 2))
    assert manifest.num_patients == 2
    assert [len(manifest.images(item)) for item in manifest.examples] == [1, 0, 1, 2]
    assert manifest.images(manifest.examples[2])[0].getpixel((0, 0)) == (9, 9, 9)
    assert load_manifest(tmp_path / "site") == manifest


def test_history_and_choices_are_read_back(tmp_path: Path) -> None:
    said = Exchange("Seen <image>?", "no")
    item = dataclasses.replace(example(), history=(said,), choices=("yes", "no"), answer="no", task="choice")
    manifest = write_manifest(tmp_path / "site", [item, example()])
    assert [(read.history, read.choices) for read in manifest.examples] == [((said,), ("yes", "no")), ((), ())]


def test_image_names_are_running_numbers_and_files_are_private(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        write_manifest(tmp_path / "a" / "site", [example(SECRET, png(1)), example("p", png(2))])
    finally:
        os.umask(previous)
    site = tmp_path / "a" / "site"
    assert sorted(item.name for item in (site / "images").iterdir()) == ["000001.png", "000002.png"]
    for path, mode in [(site, 0o700), (site / "images", 0o700), (site / MANIFEST_NAME, 0o600)]:
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE((site / "images" / "000001.png").stat().st_mode) == 0o600


def test_equal_images_are_shared_within_a_patient_only(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "site", [example("p1"), example("p1"), example("p2")])
    paths = [item.images[0].path for item in manifest.examples]
    assert paths == ["images/000001.png", "images/000001.png", "images/000002.png"]


def test_a_second_import_never_mixes_with_the_first(tmp_path: Path) -> None:
    before = write_manifest(tmp_path / "site", [example()])
    with pytest.raises(DataError, match="exists"):
        write_manifest(tmp_path / "site", [example("other")])
    assert load_manifest(tmp_path / "site") == before


def test_images_of_somebody_else_are_never_touched(tmp_path: Path) -> None:
    """An administrator may give the source itself as destination: its images have the names that a manifest's have."""
    lay_out(tmp_path / "site", raw=b"")
    (tmp_path / "site" / MANIFEST_NAME).unlink()
    (tmp_path / "site" / "images" / "000001.png").write_bytes(png(7))
    with pytest.raises(DataError, match="images holds files"):
        write_manifest(tmp_path / "site", [example()])
    assert (tmp_path / "site" / "images" / "000001.png").read_bytes() == png(7)


def test_what_an_interrupted_write_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000009.png").write_bytes(png(7))
    (tmp_path / f"{MANIFEST_NAME}.part").write_bytes(b"{")
    assert write_manifest(tmp_path, [example()]).num_patients == 1
    assert [path.name for path in sorted(tmp_path.rglob("*.*"))] == ["000001.png", MANIFEST_NAME]


def test_a_failed_write_leaves_no_patient_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: answer is not a text, or is empty"):
        write_manifest(tmp_path / "site", [example(), example(answer=" ")])
    assert [path for path in (tmp_path / "site").rglob("*") if path.is_file()] == []
    assert write_manifest(tmp_path / "site", [example()]).num_patients == 1


def test_a_line_that_nobody_could_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: is longer than 1048576 bytes"):
        write_manifest(tmp_path / "site", [example(), example(answer="w " * 600_000)])
    assert not (tmp_path / "site" / MANIFEST_NAME).exists()
    longest = write_manifest(tmp_path / "site", [example(answer="w" * ((1 << 20) - 400))])
    assert load_manifest(tmp_path / "site") == longest


def test_images_may_come_from_another_manifest(tmp_path: Path) -> None:
    first = write_manifest(tmp_path / "first", [example("p1", png(1)), example("p2", png(2))])
    second = write_manifest(tmp_path / "second", first.examples[1:], images_from=first.folder)
    assert second.images(second.examples[0])[0].getpixel((0, 0)) == (2, 2, 2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"answer": 3}, "answer is not a text"),
        ({"answer": SECRET, "question": ""}, "question is not a text, or is empty"),
        ({"patient": None}, "patient is not a text"),
        ({"patient": "half \ud800 a pair"}, "patient is not a text"),
        ({"answer_type": SECRET}, "answer_type is unknown, expected one of closed, open"),
        ({"task": SECRET}, "task is unknown"),
        ({"split": SECRET}, "split is unknown"),
        ({"images": f"images/{SECRET}.png"}, "images is not a list of paths"),
        ({"images": [3]}, "images is not a list of paths"),
        ({"images": [""]}, "images is not a list of paths"),
        ({"attributes": [SECRET]}, "attributes is not an object of texts"),
        ({"attributes": {SECRET: 1}}, "attributes is not an object of texts"),
        ({SECRET: "x"}, "has 1 unknown keys"),
        ({"history": {SECRET: 1}}, "history is not a list of pairs of texts"),
        ({"history": [[SECRET]]}, "history is not a list of pairs of texts"),
        ({"history": [[SECRET, " "]]}, "history is not a list of pairs of texts"),
        ({"choices": [SECRET, 1]}, "choices is not a list of texts"),
        ({"choices": [SECRET, "b"]}, "the answer is not one of the choices"),
        ({"choices": ["yes", "yes"], "answer": "yes"}, "two choices are the same"),
        ({"question": f"<image> {SECRET} <image>"}, "another number of <image>"),
        ({"images": [f"images/{SECRET}-2.png"]}, "does not exist"),
        ({"images": ["../outside.png"]}, "leaves the folder"),
        ({"images": ["images/../../outside.png"]}, "leaves the folder"),
        ({"images": ["/etc/passwd"]}, "leaves the folder"),
        ({"images": ["images\\..\\x.png"]}, "leaves the folder"),
        ({"images": ["images/a\0.png"]}, "leaves the folder"),
        ({"images": ["images"]}, "not a regular file"),
        ({"images": ["images/pipe"]}, "not a regular file"),
        ({"images": ["images/link.png"]}, "a link out of the folder"),
        ({"images": ["linked/outside.png"]}, "a link out of the folder"),
        ({"images": ["images/dangling.png"]}, "does not exist"),
    ],
)
def test_a_wrong_line_is_named_by_number_and_not_shown(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    folder = lay_out(tmp_path / "site", row(), row(**changes))
    (tmp_path / "outside.png").write_bytes(png())
    (folder / "images" / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "images" / "dangling.png").symlink_to("nowhere.png")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "images" / "pipe")
    with pytest.raises(DataError) as caught:
        load_manifest(folder)
    assert "line 2" in caught.value.message
    assert expected in caught.value.message
    assert SECRET not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (b'{"patient": "Jane', "not valid JSON"),
        (b'{"patient": "Jane", "patient": "Joe"}', "same key twice"),
        (b"[" * 100_000, "not valid JSON"),
        (b'"Jane"', "is a JSON str, expected an object"),
        (b'{"patient": "Jane"}', "lacks images, question, answer"),
        (b'{"patient": "J\xe4ne"}', "not valid JSON in UTF-8"),
        (b'"' + b"J" * MAX_LINE_BYTES + b'"', f"longer than {MAX_LINE_BYTES} bytes"),
    ],
)
def test_a_broken_line_is_named_by_number_and_not_shown(tmp_path: Path, second: bytes, expected: str) -> None:
    folder = lay_out(tmp_path / "site", raw=json.dumps(row()).encode() + b"\n" + second)
    with pytest.raises(DataError) as caught:
        load_manifest(folder)
    assert "line 2" in caught.value.message
    assert expected in caught.value.message
    assert "J" not in caught.value.message.replace("JSON", "")


def test_byte_order_mark_crlf_and_blank_lines_are_tolerated(tmp_path: Path) -> None:
    line = json.dumps(row()).encode()
    folder = lay_out(tmp_path / "site", raw=b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    assert len(load_manifest(folder).examples) == 2


def test_no_manifest_and_no_example_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_manifest(tmp_path)
    assert "import" in caught.value.hint
    with pytest.raises(DataError, match="holds no example") as caught:
        load_manifest(lay_out(tmp_path / "site", raw=b"\n"))
    assert "import" in caught.value.hint
    with pytest.raises(DataError, match=r"there is no example to write into .*none") as caught:
        write_manifest(tmp_path / "none", [])
    assert "split" in caught.value.hint


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "site", row(images=["images/link.png"]))
    (folder / "images" / "link.png").symlink_to(f"{SECRET}.png")
    (tmp_path / "other-name").symlink_to(folder)
    assert load_manifest(folder).sha256 == load_manifest(tmp_path / "other-name").sha256


def unreadable() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    whole = encode_png(noise)
    return {
        "zero bytes": b"",
        "text": b"not an image",
        "cut off": whole[: len(whole) // 2],
        "header only": whole[:40],
        "another format": b"GIF89a" + whole,
        "damaged": whole[:60] + b"\0" * 40 + whole[100:],
    }


@pytest.mark.parametrize("kind", unreadable())
def test_an_unreadable_image_quarantines_its_example_only(tmp_path: Path, kind: str) -> None:
    folder = lay_out(tmp_path / "site", row(), row(images=[f"images/{SECRET}.png", "images/bad.png"]), row())
    (folder / "images" / "bad.png").write_bytes(unreadable()[kind])
    manifest = load_manifest(folder)
    assert (len(manifest.examples), manifest.quarantined) == (2, 1)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "site", row(), row())
    (folder / "images" / f"{SECRET}.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 2 examples has readable images"):
        load_manifest(folder)


def test_the_hash_covers_lines_and_image_bytes_and_the_fingerprint_its_key(tmp_path: Path) -> None:
    folder = write_manifest(tmp_path / "site", [example("p1", png(1)), example("p2", png(2))]).folder
    seen = {load_manifest(folder).sha256}
    (folder / "images" / "000002.png").write_bytes(png(3))
    seen.add(load_manifest(folder).sha256)
    (folder / "images" / "000002.png").write_bytes(b"")
    seen.add(load_manifest(folder).sha256)
    with (folder / MANIFEST_NAME).open("ab") as file:
        file.write(b"\n")
    seen.add((last := load_manifest(folder)).sha256)
    assert len(seen) == 4
    assert last.fingerprint(b"one") == load_manifest(folder).fingerprint(b"one")
    assert len({last.fingerprint(b"one"), last.fingerprint(b"two"), last.sha256}) == 3


def test_the_repr_shows_no_patient_and_no_place(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / SECRET, [example(SECRET, question=SECRET, attributes={"x": SECRET})])
    assert SECRET not in repr(manifest)
    assert SECRET not in repr(manifest.examples)
