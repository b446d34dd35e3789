"""Node keys: what OpenSSH and Flower read, and every way a file can be the wrong one."""

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.cli.supernode.register import try_load_public_key

from fedmed.errors import AdmissionError
from fedmed.node_keys import (
    fingerprint,
    new_private_key,
    private_file,
    public_line,
    public_pem,
    read_private,
    read_public,
    write_secret,
)


def test_openssh_and_flower_read_what_is_written(tmp_path: Path) -> None:
    key = new_private_key()
    write_secret(tmp_path / "node.key", private_file(key))
    (tmp_path / "node.pub").write_text(public_line(key.public_key(), "north"))
    shown = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "node.pub"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.split() == ["384", fingerprint(key.public_key()), "north", "(ECDSA)"]
    assert try_load_public_key(tmp_path / "node.pub") == public_pem(key.public_key())
    assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600
    assert public_pem(read_private(tmp_path / "node.key").public_key()) == public_pem(key.public_key())


def ssh(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a private key"),
        (b"\xff\x00", "is not a private key"),
        (ssh(ec.generate_private_key(ec.SECP256R1())), "not an elliptic curve key on P-384"),
        (ssh(ed25519.Ed25519PrivateKey.generate()), "not an elliptic curve key on P-384"),
    ],
)
def test_a_wrong_private_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "node.key"
    write_secret(path, content)
    with pytest.raises(AdmissionError, match=said) as error:
        read_private(path)
    assert str(path) in error.value.message
    assert "keygen" in error.value.hint


def test_a_key_with_a_passphrase_is_named(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "a passphrase", "-f", path], check=True)
    with pytest.raises(AdmissionError, match="is not a private key without passphrase"):
        read_private(path)


def test_a_key_that_others_may_read_or_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    with pytest.raises(AdmissionError, match="No such file"):
        read_private(path)
    write_secret(path, private_file(new_private_key()))
    path.chmod(0o644)
    with pytest.raises(AdmissionError, match="mode 0644, expected 0600"):
        read_private(path)


def test_a_private_key_sent_by_mistake_is_named_and_not_shown(tmp_path: Path) -> None:
    secret = private_file(new_private_key())
    (tmp_path / "north.pub").write_bytes(secret)
    with pytest.raises(AdmissionError, match="is a private key, expected the public one") as error:
        read_public(tmp_path / "north.pub")
    body = secret.splitlines()[1].decode()
    assert body not in error.value.message + error.value.hint


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    write_secret(tmp_path / "node.key", b"first")
    with pytest.raises(AdmissionError, match="never overwritten"):
        write_secret(tmp_path / "node.key", b"second")
    assert (tmp_path / "node.key").read_bytes() == b"first"
