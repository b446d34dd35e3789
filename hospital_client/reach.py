"""Whether a site would be let in, and if not, why: the certificate, the clock and the key, each named with what to do.

    reach(load_connection(DIR)) -> Reach(certificate's end, clock, admitted) or the error that a connection would meet

| what is wrong                                  | what is raised                                            |
| ---------------------------------------------- | --------------------------------------------------------- |
| nobody listens, no such host                   | FederationError                                           |
| no TLS there                                   | AdmissionError: plain text is refused                     |
| certificate ended, or has not begun            | AdmissionError with its dates and this machine's clock    |
| certificate for other names                    | AdmissionError with the names it is for                   |
| certificate of another authority               | AdmissionError: perhaps not the consortium's SuperLink    |
| this clock more than 5 s ahead or 305 s behind | AdmissionError: Flower refuses the signature's time       |
| the key is unknown there, or was revoked       | AdmissionError with the key's fingerprint                 |

| what a person should know in time              | a line in `warnings`                                      |
| ---------------------------------------------- | --------------------------------------------------------- |
| certificate ends within 30 days                | its date, and who renews it                               |
| clocks differ by more than 60 s                | by how much                                               |

Certificates are checked here by OpenSSL and not by gRPC, which says `handshake failed` and little more.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509

from fedmed.errors import AdmissionError, FederationError
from fedmed.node_keys import fingerprint, public_pem
from fedmed.wire.greeting import Greeting, greet
from hospital_client.connection import Connection

TIMEOUT_S = 10.0
WARN_DAYS = 30
WARN_SKEW_S = 60.0
# What Flower 1.39 allows a call's signed time to differ (flwr.common.constant): ahead of its clock, and behind.
AHEAD_S, BEHIND_S = 5.0, 305.0
# OpenSSL's verify codes (X509_V_ERR_*).
_NOT_BEGUN, _ENDED = 9, 10
_OTHER_NAME = (62, 64)
_CONSORTIUM = "tell the consortium"


@dataclass(frozen=True, slots=True)
class Reach:
    """A SuperLink that would let this site in. `skew_s`: its clock less ours, in seconds."""

    address: str
    certificate_ends: datetime
    skew_s: float
    version: str
    warnings: tuple[str, ...]

    @property
    def text(self) -> str:
        return (
            f"{self.address} lets this site in; certificate until {self.certificate_ends:%Y-%m-%d}, "
            f"clocks differ by {abs(self.skew_s):.1f} s, FedMed {self.version} there"
        )


def reach(connection: Connection, timeout_s: float = TIMEOUT_S) -> Reach:
    """Raises as the table above says."""
    address = connection.settings.superlink
    ends = certificate_end(address, connection.root, timeout_s)
    greeting = greet(address, connection.root, public_pem(connection.key.public_key()), timeout_s)
    _check_clock(greeting, address)
    if not greeting.admitted:
        raise AdmissionError(
            f"the SuperLink at {address} does not admit the key {fingerprint(connection.key.public_key())} of site "
            f"{connection.settings.site}: unknown there, or revoked",
            f"{_CONSORTIUM} this fingerprint (node.pub); a revoked key never comes back: `fedmed-site keygen`, `join`",
        )
    return Reach(address, ends, greeting.skew_s, greeting.version, (*_ending(ends, address), *_skewed(greeting)))


def certificate_end(address: str, root: bytes, timeout_s: float = TIMEOUT_S) -> datetime:
    """When the certificate of the server at HOST:PORT ends. Raises as the table above says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=root.decode("ascii", "replace"))
    try:
        return _certificate(address, context, timeout_s).not_valid_after_utc
    except ssl.SSLCertVerificationError as error:
        raise _refused(error.verify_code, address, timeout_s) from None
    except ssl.SSLError:
        raise AdmissionError(
            f"{address} speaks no TLS, and plain text is refused there", "is it the Fleet port of `fedmed superlink`?"
        ) from None
    except OSError as error:
        raise FederationError(
            f"nobody answers at {address}: {error.strerror or type(error).__name__}",
            "is the SuperLink started, is the address right, does a firewall allow it?",
        ) from None


def _certificate(address: str, context: ssl.SSLContext, timeout_s: float) -> x509.Certificate:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    context.set_alpn_protocols(["h2"])  # gRPC's server closes the connection without it
    with (
        socket.create_connection((host, int(port)), timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")


def _refused(code: int, address: str, timeout_s: float) -> AdmissionError:
    """The reason why OpenSSL refused a certificate, with what the certificate says of itself (which proves nothing)."""
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    whose = f"the certificate of the SuperLink at {address}"
    try:
        shown = _certificate(address, unchecked, timeout_s)
    except (OSError, ValueError):
        return AdmissionError(f"{whose} is not accepted", _CONSORTIUM)
    now = f"this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    if code == _ENDED:
        return AdmissionError(
            f"{whose} ended on {shown.not_valid_after_utc:%Y-%m-%d %H:%M} UTC ({now})",
            f"if this clock is right, {_CONSORTIUM}: `fedmed provision renew`",
        )
    if code == _NOT_BEGUN:
        return AdmissionError(
            f"{whose} begins on {shown.not_valid_before_utc:%Y-%m-%d %H:%M} UTC ({now})",
            f"set this machine's clock, best by NTP; if it is right, {_CONSORTIUM}",
        )
    if code in _OTHER_NAME:
        return AdmissionError(
            f"{whose} is for {', '.join(_names(shown)) or 'no name at all'}, not for that address",
            f"use an address that it names in connection.yaml, or {_CONSORTIUM}: `fedmed provision renew --host`",
        )
    return AdmissionError(
        f"{whose} was not made by this consortium's CA: it may be somebody else",
        f"do not go on: compare root.pem with the consortium's ca.pem, and {_CONSORTIUM}",
    )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value)[:100] for name in names][:10]


def _check_clock(greeting: Greeting, address: str) -> None:
    ahead = -greeting.skew_s
    if ahead - greeting.error_s > AHEAD_S or -ahead - greeting.error_s > BEHIND_S:
        raise AdmissionError(
            f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the one of the SuperLink at "
            f"{address}, expected at most {AHEAD_S:.0f} s ahead and {BEHIND_S:.0f} s behind",
            "set the clock, best by NTP, here or there",
        )


def _skewed(greeting: Greeting) -> list[str]:
    if abs(greeting.skew_s) - greeting.error_s <= WARN_SKEW_S:
        return []
    return [f"this machine's clock and the SuperLink's differ by {abs(greeting.skew_s):.0f} s: set them, best by NTP"]


def _ending(ends: datetime, address: str) -> list[str]:
    left = ends - datetime.now(UTC)
    if left > timedelta(days=WARN_DAYS):
        return []
    return [
        f"the certificate of the SuperLink at {address} ends on {ends:%Y-%m-%d}, in {left.days} days: "
        f"{_CONSORTIUM} (`fedmed provision renew`)"
    ]
