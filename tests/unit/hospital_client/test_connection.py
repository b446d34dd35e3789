"""A site's connection: keys that stay, kits that fit, and what does not fit is named and changes nothing."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aggregator.joining.certificates import certificate_pem, new_authority
from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.errors import AdmissionError, ConfigError
from fedmed.kit import Kit, write_kit
from fedmed.node_keys import fingerprint, new_private_key, private_file, public_line, read_public
from hospital_client.cli import app
from hospital_client.connection import KEY, NEXT_KEY, NEXT_PUBLIC, connection_folder, join, load_connection, make_key
from hospital_client.setup import create_site

ROOT = certificate_pem(new_authority("test", datetime.now(UTC)).certificate)
ADDRESS = "aggregator.example.org:9092"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "data", phantom_examples(2, 0, domain="hospital", split="train"))
    return create_site(tmp_path / "north", {"name": "north", "data": "../data"}, {}).root


def kit_for(public: Path, site: str = "north") -> Kit:
    """What the consortium makes of a public key that it was sent."""
    return Kit(site, ADDRESS, fingerprint(read_public(public)), ROOT, b"", public.read_bytes())


def kit_with_key(mark: str = "") -> Kit:
    key = new_private_key()
    line = public_line(key.public_key(), "north").encode()
    return Kit("north", ADDRESS, mark or fingerprint(key.public_key()), ROOT, private_file(key), line)


def test_a_key_made_here_and_the_kit_made_for_it(site: Path) -> None:
    connection = join(kit_for(make_key(site)), site)
    assert connection.folder == site.with_name("north.connection")
    assert (connection.settings.superlink, connection.settings.socket) == (ADDRESS, str(site / "site.sock"))
    assert load_connection(site).settings == load_connection(connection.folder).settings == connection.settings
    assert {path.stat().st_mode & 0o077 for path in [connection.folder, *connection.folder.iterdir()]} == {0}


def test_a_kit_with_a_key(site: Path) -> None:
    kit = kit_with_key()
    assert fingerprint(join(kit, site).key.public_key()) == kit.fingerprint
    newer = kit_with_key()
    assert fingerprint(join(newer, site).key.public_key()) == newer.fingerprint


def test_a_newer_key_takes_over_only_when_its_kit_comes(site: Path) -> None:
    first = join(kit_for(make_key(site)), site)
    newer = make_key(site)
    assert newer.name == "next.pub"
    assert load_connection(site).key.private_numbers() == first.key.private_numbers()
    kit = kit_for(newer)
    assert fingerprint(join(kit, site).key.public_key()) == kit.fingerprint
    assert not newer.exists()
    assert fingerprint(join(kit, site).key.public_key()) == kit.fingerprint  # the same kit again changes nothing


def test_a_join_that_was_cut_off_between_key_and_public_half_is_done_again(site: Path) -> None:
    folder = join(kit_for(make_key(site)), site).folder
    kit = kit_for(make_key(site))
    (folder / NEXT_KEY).replace(folder / KEY)
    assert fingerprint(join(kit, site).key.public_key()) == kit.fingerprint
    assert not (folder / NEXT_PUBLIC).exists()


def test_a_newer_key_that_was_taken_away_leaves_the_one_in_use(site: Path) -> None:
    first = join(kit_for(make_key(site)), site)
    kit = kit_for(make_key(site))
    (first.folder / NEXT_KEY).unlink()
    with pytest.raises(AdmissionError, match="and the kit says"):
        join(kit, site)
    assert load_connection(first.folder).key.private_numbers() == first.key.private_numbers()


def test_a_kit_that_does_not_fit_changes_nothing(site: Path, tmp_path: Path) -> None:
    first = join(kit_for(make_key(site)), site)
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    stranger = tmp_path / "other.pub"
    stranger.write_text(public_line(new_private_key().public_key(), "north"))
    for kit, said in (
        (kit_for(stranger), "the kit was made for the key SHA256:"),
        (kit_for(first.folder / "node.pub", site="south"), "the kit is for site 'south'"),
        (kit_with_key("SHA256:" + "a" * 43), "next.key is the key SHA256:"),
        (Kit("north", ADDRESS, "SHA256:" + "a" * 43, b"not a certificate"), "root.pem is no certificate"),
    ):
        with pytest.raises(AdmissionError, match=said):
            join(kit, site)
        assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before


def test_what_is_missing_is_named(site: Path) -> None:
    with pytest.raises(AdmissionError, match="has joined no consortium"):
        load_connection(site)
    folder = join(kit_for(make_key(site)), site).folder
    for name, content, said in (
        ("node.key", None, "node.key cannot be read"),
        ("root.pem", None, "root.pem cannot be read"),
        ("root.pem", b"", "root.pem is no certificate"),
        ("connection.yaml", b"site: north\nsuperlink: nowhere\nsocket: s\n", "expected HOST:PORT"),
        ("connection.yaml", b"site: north\n", "superlink"),
    ):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(AdmissionError, match=said) as error:
            load_connection(folder)
        assert error.value.hint
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(kept)
        (folder / name).chmod(0o600)


def test_no_such_user(site: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such user"):
        join(kit_for(make_key(site)), site, user="no-such-user")


def test_the_command_line_shows_fingerprints_and_no_key(site: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["keygen", str(site)]).output
    folder = connection_folder(site)
    assert fingerprint(read_public(folder / "node.pub")) in said
    tar = write_kit(tmp_path / "kit", kit_for(folder / "node.pub"))
    done = CliRunner().invoke(app, ["join", str(tar), str(site)])
    assert done.exit_code == 0, done.output
    secret = (folder / "node.key").read_text().splitlines()[2]
    assert secret not in said + done.output + repr(load_connection(site))
