"""The consortium's certificates: its own authority (CA) and the SuperLink's server certificate. Pure: bytes in, bytes out.

    new_authority("fedmed", now) -> Authority(certificate, key)
    new_server_certificate(authority, server key, ["aggregator.example.org", "10.0.0.1"], now, days) -> certificate

| certificate | key          | valid                     | for                                                              |
| ----------- | ------------ | ------------------------- | ---------------------------------------------------------------- |
| authority   | P-384        | AUTHORITY_DAYS            | signing server certificates alone (pathlen 0)                    |
| server      | P-384        | `days`, not beyond the CA | TLS server alone; every --host, and this machine's own loopback  |

Each begins BACKDATE before `now`: a site whose clock is a little behind must not refuse a new certificate. Loopback is among the
names because the server app and `fedmed run` reach the same SuperLink there.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmed.errors import AdmissionError, ConfigError

AUTHORITY_DAYS = 3650
BACKDATE = timedelta(hours=1)
WARN_DAYS = 30
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_HASH = hashes.SHA384()
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate and its key. The key is a secret, and its repr shows none of it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Authority({self.certificate.subject.rfc4514_string()!r})"


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-384 key for a certificate."""
    return ec.generate_private_key(ec.SECP384R1())


def new_authority(name: str, now: datetime, days: int = AUTHORITY_DAYS) -> Authority:
    """A self-signed CA that may sign server certificates and no further CA."""
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} consortium CA")])
    builder = _builder(subject, subject, key.public_key(), now, now + timedelta(days=days))
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _HASH)
    )
    return Authority(certificate, key)


def new_server_certificate(
    authority: Authority, key: ec.EllipticCurvePublicKey, hosts: Sequence[str], now: datetime, days: int
) -> x509.Certificate:
    """A certificate for a TLS server under every name or address of `hosts`, and loopback.

    Raises:
        ConfigError: a host is neither a name nor an address, or `days` is not positive.
        AdmissionError: the CA itself is out of date.
    """
    problems = [f"--host {host!r}: expected a DNS name or an IP address" for host in hosts if not _is_host(host)]
    problems += ["no --host, expected the names and addresses by which sites reach the SuperLink"] if not hosts else []
    problems += [f"--days {days}: expected at least 1"] if days < 1 else []
    if problems:
        raise ConfigError(problems)
    end = authority.certificate.not_valid_after_utc
    if now >= end:
        raise AdmissionError(f"the consortium's CA ended on {end:%Y-%m-%d}", "provision a new consortium, and new kits")
    names = dict.fromkeys([*hosts, *LOOPBACK_NAMES])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    issuer = authority.certificate.subject
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return (
        _builder(subject, issuer, key, now, min(now + timedelta(days=days), end))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(identifier, critical=False)
        .sign(authority.key, _HASH)
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """As TLS libraries read it."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """As TLS libraries read it. A secret: to be written with mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def belongs(certificate_file: bytes, key_file: bytes) -> bool:
    """Whether two PEM files are whole, and the key is the certificate's."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file)
        key = serialization.load_pem_private_key(key_file, None)
    except (ValueError, TypeError):
        return False
    return certificate.public_key() == key.public_key()


def days_left(certificate: x509.Certificate, now: datetime) -> float:
    """Days until it ends; negative afterwards."""
    return (certificate.not_valid_after_utc - now) / timedelta(days=1)


def end_warning(thing: str, certificate: x509.Certificate, now: datetime, remedy: str) -> str:
    """One line from WARN_DAYS before its end on, or nothing."""
    left, end = days_left(certificate, now), certificate.not_valid_after_utc
    if left > WARN_DAYS:
        return ""
    when = f"ends in {left:.0f} days, on {end:%Y-%m-%d}" if left > 0 else f"ended on {end:%Y-%m-%d}"
    return f"{thing} {when}: {remedy}"


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(now - BACKDATE).not_valid_after(end)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in host.split("."))
    return True


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
