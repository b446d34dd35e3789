"""The consortium's folder: certificates that chain, files that are closed, and a renewal that sites do not notice."""

import ipaddress
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from aggregator.cli import app
from aggregator.joining import certificates, provision
from fedmed.errors import AdmissionError, ConfigError
from fedmed.kit import read_kit
from fedmed.node_keys import fingerprint, new_private_key, public_line, read_private, read_public

HOSTS = ("aggregator.example.org", "10.0.0.1", "fd00::1")
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def consortium(tmp_path: Path) -> provision.Consortium:
    return provision.init(tmp_path / "consortium", HOSTS, now=NOW)


def openssl_verifies(consortium: provision.Consortium, *options: str) -> bool:
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(consortium.ca), *options]
    return subprocess.run([*command, str(consortium.certificate)], capture_output=True).returncode == 0


def test_the_chain_verifies_under_every_host_and_no_other(consortium: provision.Consortium) -> None:
    for option in ("-verify_hostname", "-verify_ip"):
        named = [
            host
            for host in (*HOSTS, "localhost", "127.0.0.1")
            if (":" in host or host[0].isdigit()) == (option[-2:] == "ip")
        ]
        assert all(openssl_verifies(consortium, option, host) for host in named)
    assert not openssl_verifies(consortium, "-verify_hostname", "other.example.org")
    assert not openssl_verifies(consortium, "-verify_ip", "10.0.0.2")


def test_what_the_certificates_may_be_used_for(consortium: provision.Consortium) -> None:
    ca, server = provision.load_certificate(consortium.ca), provision.load_certificate(consortium.certificate)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign and not usage.digital_signature
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(item) for item in names.get_values_for_type(x509.IPAddress)}
    assert addresses == {"10.0.0.1", "fd00::1", "127.0.0.1", "::1"}
    assert server.not_valid_after_utc == NOW + timedelta(days=365)
    assert server.not_valid_before_utc == NOW - certificates.BACKDATE
    assert {ipaddress.ip_address(item).version for item in addresses} == {4, 6}


def test_every_file_is_closed_to_others(consortium: provision.Consortium) -> None:
    provision.add_site(consortium, "north")
    everything = [consortium.root, *consortium.root.rglob("*")]
    assert len(everything) > 10
    assert {path: path.stat().st_mode & 0o077 for path in everything if path.stat().st_mode & 0o077} == {}
    consortium.root.chmod(0o750)
    with pytest.raises(AdmissionError, match="mode 0750, expected 0700"):
        provision.load(consortium.root)


def test_a_kit_opens_the_door_it_is_for(consortium: provision.Consortium, tmp_path: Path) -> None:
    kit = read_kit(provision.add_site(consortium, "north"))
    (entry,) = consortium.register.valid()
    (tmp_path / "node.key").write_bytes(kit.key)
    (tmp_path / "node.key").chmod(0o600)
    key = read_private(tmp_path / "node.key").public_key()
    assert fingerprint(key) == kit.fingerprint == entry.fingerprint
    assert (kit.site, kit.superlink, kit.root) == ("north", "aggregator.example.org:9092", consortium.ca.read_bytes())


def test_a_key_made_at_the_hospital_never_comes_here(consortium: provision.Consortium, tmp_path: Path) -> None:
    key = new_private_key().public_key()
    (tmp_path / "north.pub").write_text(public_line(key, "north"))
    kit = read_kit(provision.add_site(consortium, "north", tmp_path / "north.pub"))
    assert kit.key == b""
    assert kit.fingerprint == fingerprint(key) == fingerprint(read_public(consortium.root / "kits/north/node.pub"))
    files = [
        path for path in consortium.root.rglob("*") if path.is_file() and path.name not in ("ca.key", "server.key")
    ]
    assert not [path for path in files if b"PRIVATE KEY" in path.read_bytes()]


@pytest.mark.parametrize("new_key", [False, True])
def test_a_renewal_keeps_the_ca_and_the_hosts(consortium: provision.Consortium, new_key: bool) -> None:
    ca, before, key = (
        consortium.ca.read_bytes(),
        provision.load_certificate(consortium.certificate),
        consortium.key.read_bytes(),
    )
    later = NOW + timedelta(days=200)
    after = provision.renew(consortium, new_key=new_key, now=later)
    assert consortium.ca.read_bytes() == ca
    assert (consortium.key.read_bytes() != key) is new_key
    assert after.serial_number != before.serial_number
    assert after.not_valid_after_utc == later + timedelta(days=365)
    assert certificates.belongs(consortium.certificate.read_bytes(), consortium.key.read_bytes())
    assert openssl_verifies(consortium, "-attime", str(int(later.timestamp())), "-verify_hostname", HOSTS[0])


def test_a_server_certificate_does_not_outlive_its_ca(consortium: provision.Consortium) -> None:
    end = provision.load_certificate(consortium.ca).not_valid_after_utc
    assert provision.renew(consortium, now=end - timedelta(days=10)).not_valid_after_utc == end
    with pytest.raises(AdmissionError, match="the consortium's CA ended on"):
        provision.renew(consortium, now=end)


@pytest.mark.parametrize(
    ("days_before", "said"), [(31, None), (30, "ends in 30 days"), (1, "ends in 1 days"), (-1, "ended on")]
)
def test_a_certificate_warns_thirty_days_ahead(
    consortium: provision.Consortium, days_before: int, said: str | None
) -> None:
    end = provision.load_certificate(consortium.certificate).not_valid_after_utc
    lines = provision.certificate_warnings(consortium, end - timedelta(days=days_before))
    assert len(lines) == (said is not None)
    if said:
        assert said in lines[0]
        assert "fedmed provision renew" in lines[0]


def test_wrong_hosts_and_days_are_named_at_once_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        provision.init(tmp_path / "c", ["a host", "-x", "1.2.3.4"], days=0)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["--host 'a host'", "--host '-x'", "--days 0"]
    with pytest.raises(ConfigError, match="no --host"):
        provision.init(tmp_path / "c", [])
    assert not (tmp_path / "c").exists()


def test_a_second_consortium_in_the_folder_is_refused(consortium: provision.Consortium) -> None:
    ca = consortium.ca.read_bytes()
    with pytest.raises(AdmissionError, match="holds a consortium already"):
        provision.init(consortium.root, HOSTS)
    assert consortium.ca.read_bytes() == ca


def test_without_its_ca_key_a_consortium_admits_but_does_not_renew(consortium: provision.Consortium) -> None:
    (consortium.root / "ca.key").unlink()
    assert provision.add_site(consortium, "north").exists()
    with pytest.raises(AdmissionError, match=r"ca.key is not there") as error:
        provision.renew(consortium)
    assert "bring it back" in error.value.hint


def test_no_repr_shows_a_private_key(consortium: provision.Consortium) -> None:
    authority = certificates.new_authority("test", NOW)
    assert "PRIVATE" not in repr(authority) + repr(consortium)
    assert "EllipticCurve" not in repr(authority)


def test_the_command_line_prints_no_secret_and_names_mistakes(tmp_path: Path) -> None:
    root, runner = str(tmp_path / "c"), CliRunner()
    said = ""
    for line in (
        f"provision init {root} --host aggregator.example.org",
        f"provision site {root} north",
        f"provision site {root} south",
        f"provision renew {root} --new-key",
        f"provision revoke {root} south --reason left",
        f"provision status {root}",
        f"provision status {root} --json",
    ):
        done = runner.invoke(app, line.split())
        assert done.exit_code == 0, done.output
        said += done.output
    assert "revoked" in said and "left" in said
    for path in Path(root).rglob("*.key"):
        body = path.read_text().splitlines()[1]
        assert body not in said
        assert body not in (Path(root) / "register.jsonl").read_text()
    assert isinstance(runner.invoke(app, ["provision", "revoke", root, "east"]).exception, AdmissionError)
    assert isinstance(runner.invoke(app, ["provision", "site", root, "../x"]).exception, ConfigError)
    assert isinstance(runner.invoke(app, ["provision", "status", str(tmp_path)]).exception, AdmissionError)
    assert os.environ.get("FEDMED_CONSORTIUM") is None
