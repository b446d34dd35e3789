"""The kit: the same as a folder and as a tar, and what is no kit is named."""

import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from fedmed.errors import AdmissionError
from fedmed.kit import Kit, read_kit, write_kit

KIT = Kit("north", "aggregator.example.org:9092", "SHA256:" + "a" * 43, b"ROOT", b"KEY", b"PUBLIC")


@pytest.mark.parametrize("kit", [KIT, Kit(KIT.site, "[fd00::1]:9092", KIT.fingerprint, b"ROOT", b"", b"PUBLIC")])
def test_folder_and_tar_say_the_same_and_are_closed_to_others(tmp_path: Path, kit: Kit) -> None:
    tar = write_kit(tmp_path / "north", kit)
    assert read_kit(tmp_path / "north") == read_kit(tar) == kit
    assert {path.stat().st_mode & 0o077 for path in [tar, *(tmp_path / "north").iterdir(), tmp_path / "north"]} == {0}


def test_a_new_kit_takes_the_old_ones_key_away(tmp_path: Path) -> None:
    write_kit(tmp_path / "north", KIT)
    write_kit(tmp_path / "north", Kit(KIT.site, KIT.superlink, KIT.fingerprint, b"ROOT"))
    assert read_kit(tmp_path / "north").key == read_kit(tmp_path / "north.tar").key == b""


def test_the_key_is_not_in_the_repr() -> None:
    assert "KEY" not in repr(KIT)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("connection.yaml", None, "lacks connection.yaml"),
        ("root.pem", None, "lacks root.pem"),
        ("connection.yaml", "site: ../etc\nsuperlink: a:1\nkey: SHA256:" + "a" * 43, "is no site's name"),
        ("connection.yaml", "site: north\nsuperlink: a\nkey: SHA256:" + "a" * 43, "expected HOST:PORT"),
        ("connection.yaml", "site: north\nsuperlink: a:1\nkey: none", "is no fingerprint"),
        ("connection.yaml", "site: north", "superlink"),
        ("connection.yaml", "- a list", "expected keys and values"),
        ("connection.yaml", "site: [", "not readable YAML"),
        ("connection.yaml", b"\xff\xfe", "north"),
    ],
)
def test_what_is_no_kit_is_named(tmp_path: Path, name: str, text: str | bytes | None, said: str) -> None:
    write_kit(tmp_path / "north", KIT)
    (tmp_path / "north" / name).unlink()
    if text is not None:
        (tmp_path / "north" / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(AdmissionError, match=said):
        read_kit(tmp_path / "north")


def test_no_file_or_no_tar(tmp_path: Path) -> None:
    with pytest.raises(AdmissionError, match="cannot be read"):
        read_kit(tmp_path / "north.tar")
    (tmp_path / "north.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(AdmissionError, match="neither a folder nor a tar"):
        read_kit(tmp_path / "north.tar")


def test_nothing_else_of_a_tar_is_looked_at(tmp_path: Path) -> None:
    tar = write_kit(tmp_path / "north", KIT)
    with tarfile.open(tar, "a") as archive:
        for name in ("../../escaped", "north/other"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            archive.addfile(entry, BytesIO(b"evil"))
        link = tarfile.TarInfo("north/root.pem")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert read_kit(tar) == KIT
    assert {path.name for path in tmp_path.iterdir()} == {"north", "north.tar"}
