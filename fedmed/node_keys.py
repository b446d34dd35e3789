"""Node keys: what a site proves who it is with. Elliptic curve keys (P-384) in OpenSSH's formats, as Flower reads them.

    new_private_key() -> private file (0600, stays at the site) + public line -> fingerprint -> the consortium's register

    >>> key = new_private_key()
    >>> public_line(key.public_key(), "north").split()[0]
    'ecdsa-sha2-nistp384'
    >>> fingerprint(key.public_key()) == fingerprint(parse_public(public_line(key.public_key(), "north")))
    True

The fingerprint is the one that `ssh-keygen -lf FILE` prints, so that two people can compare it over the telephone.

| what is read                               | what happens                                        |
| ------------------------------------------ | --------------------------------------------------- |
| no file, or not readable                   | AdmissionError naming the file                      |
| private key readable by others             | AdmissionError with the command that closes it      |
| private key with a passphrase              | AdmissionError: a service cannot type one           |
| a private key where a public one is wanted | AdmissionError that says so; its text is not shown  |
| RSA, Ed25519, another curve                | AdmissionError: Flower takes NIST curves alone      |
"""

from __future__ import annotations

import base64
import hashlib
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedmed.errors import AdmissionError
from fedmed.files import write_new

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
CURVE = ec.SECP384R1
_NEW_KEY = "make a new pair with `fedmed-site keygen DIR`"


def new_private_key() -> PrivateKey:
    """A fresh P-384 key."""
    return ec.generate_private_key(CURVE())


def private_file(key: PrivateKey) -> bytes:
    """The key as `flower-supernode --auth-supernode-private-key` reads it. A secret: to be written with mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def public_line(key: PublicKey, site: str) -> str:
    """One line of OpenSSH, the site's name as its comment."""
    blob = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{blob.decode()} {site}"


def public_pem(key: PublicKey) -> bytes:
    """The form in which Flower keeps and sends a public key."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: PublicKey) -> str:
    """`SHA256:...`, as ssh-keygen prints it."""
    blob = base64.b64decode(public_line(key, "").split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def parse_public(text: str, where: str = "the public key") -> PublicKey:
    """The key of an OpenSSH line. Raises AdmissionError naming `where`, never showing the text."""
    if "PRIVATE KEY" in text:
        raise AdmissionError(
            f"{where} is a private key, expected the public one",
            "send the file that ends in .pub; treat this one as lost",
        )
    try:
        key = serialization.load_ssh_public_key(text.strip().encode())
    except (ValueError, UnsupportedAlgorithm):
        raise AdmissionError(f"{where} is not a public key in OpenSSH's format", _NEW_KEY) from None
    if not isinstance(key, PublicKey) or not isinstance(key.curve, CURVE):
        raise AdmissionError(f"{where} is not an elliptic curve key on P-384", _NEW_KEY)
    return key


def read_public(path: Path) -> PublicKey:
    """Raises AdmissionError as the table above says."""
    return parse_public(_read(path).decode(errors="replace"), str(path))


def read_private(path: Path) -> PrivateKey:
    """Raises AdmissionError as the table above says."""
    data = _read(path)
    if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        raise AdmissionError(f"{path} has mode {mode:04o}, expected 0600: others may read it", f"chmod 600 {path}")
    try:
        key = serialization.load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise AdmissionError(f"{path} is not a private key without passphrase in OpenSSH's format", _NEW_KEY) from None
    if not isinstance(key, PrivateKey) or not isinstance(key.curve, CURVE):
        raise AdmissionError(f"{path} is not an elliptic curve key on P-384", _NEW_KEY)
    return key


def write_secret(path: Path, data: bytes) -> None:
    """A new file with mode 0600. Raises AdmissionError when there is one: a key is never overwritten."""
    try:
        write_new(path, data)
    except FileExistsError:
        raise AdmissionError(f"{path} exists, expected no key there: a key is never overwritten") from None
    except OSError as error:
        raise AdmissionError(f"{path} cannot be written: {error.strerror}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AdmissionError(f"{path} cannot be read: {error.strerror}", _NEW_KEY) from None
