"""`fedmed provision`: one consortium's folder, with its CA, the SuperLink's certificate, the register and the sites' kits.

DIR (0700, all private files 0600)
  consortium.json                hosts, Fleet port, days a certificate is valid
  ca.pem ca.key                  the CA; its key is used by `init` and `renew` alone and is best kept elsewhere in between
  server.pem server.key          what the SuperLink shows
  register.jsonl                 who may join, and who ever could (aggregator/joining/register.py)
  kits/NAME/ kits/NAME.tar       what site NAME is handed (fedmed/kit.py)

| what happens                                      | what comes of it                                                     |
| ------------------------------------------------- | -------------------------------------------------------------------- |
| `init` in a folder that holds a consortium        | AdmissionError; nothing is touched                                   |
| `site` without a public key                       | a pair is made here, its private half goes into the kit alone        |
| `site` with a public key                          | the kit holds no private key: the site has it, and nobody else       |
| `renew`                                           | a new certificate under the same CA: sites notice nothing            |
| `renew` while the SuperLink runs                  | it shows the new certificate from the next connection on, no restart |
| `revoke` while the SuperLink runs                 | the site's calls are refused within seconds                          |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aggregator.joining import certificates
from aggregator.joining.register import Entry, Register
from fedmed.errors import AdmissionError, ConfigError
from fedmed.files import PRIVATE, write_atomic, write_json
from fedmed.kit import SITE_NAME, Kit, write_kit
from fedmed.node_keys import fingerprint, new_private_key, private_file, public_line, read_public, write_secret

SERVER_DAYS = 365
FLEET_PORT = 9092
SETTINGS = "consortium.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """consortium.json: under which names sites reach the SuperLink (the first is in the kits), and its Fleet port."""

    hosts: tuple[str, ...]
    fleet_port: int
    days: int


@dataclass(frozen=True, slots=True)
class Consortium:
    """A consortium's folder."""

    root: Path
    settings: Settings

    @property
    def ca(self) -> Path:
        return self.root / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.root / "server.pem"

    @property
    def key(self) -> Path:
        return self.root / "server.key"

    @property
    def register(self) -> Register:
        return Register(self.root / "register.jsonl")

    @property
    def superlink(self) -> str:
        """The Fleet address as sites know it."""
        host = self.settings.hosts[0]
        return f"[{host}]:{self.settings.fleet_port}" if ":" in host else f"{host}:{self.settings.fleet_port}"


def init(
    root: Path,
    hosts: Sequence[str],
    *,
    fleet_port: int = FLEET_PORT,
    days: int = SERVER_DAYS,
    now: datetime | None = None,
) -> Consortium:
    """A new consortium. Raises AdmissionError when `root` holds one, ConfigError for a wrong host or number of days."""
    now = now or datetime.now(UTC)
    if (root / SETTINGS).exists() or (root / "ca.key").exists():
        raise AdmissionError(
            f"{root} holds a consortium already", "`fedmed provision renew` gives it a new certificate"
        )
    authority = certificates.new_authority(hosts[0] if hosts else "", now)
    key = certificates.new_key()
    certificate = certificates.new_server_certificate(authority, key.public_key(), hosts, now, days)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    consortium = Consortium(root, Settings(tuple(hosts), fleet_port, days))
    write_secret(root / "ca.key", certificates.key_pem(authority.key))
    write_secret(consortium.key, certificates.key_pem(key))
    write_atomic(consortium.ca, certificates.certificate_pem(authority.certificate))
    write_atomic(consortium.certificate, certificates.certificate_pem(certificate))
    write_json(root / SETTINGS, asdict(consortium.settings), PRIVATE)
    return consortium


def load(root: Path) -> Consortium:
    """Raises AdmissionError when `root` is no consortium's folder, or others may read it."""
    try:
        value = json.loads((root / SETTINGS).read_text(encoding="utf-8"))
        settings = Settings(tuple(map(str, value["hosts"])), int(value["fleet_port"]), int(value["days"]))
    except FileNotFoundError:
        raise AdmissionError(
            f"{root} is not a consortium's folder: it has no {SETTINGS}",
            "make one with `fedmed provision init DIR --host NAME`",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdmissionError(
            f"{root / SETTINGS} cannot be read: {type(error).__name__}", "put it back from a backup"
        ) from None
    if (mode := root.stat().st_mode & 0o777) & 0o077:
        raise AdmissionError(f"{root} has mode {mode:04o}, expected 0700: it holds private keys", f"chmod 700 {root}")
    return Consortium(root, settings)


def add_site(consortium: Consortium, name: str, public_key: Path | None = None) -> Path:
    """Admits a site and writes its kit; returns the kit's tar file.

    Args:
        public_key: the site's own, in OpenSSH's format; None makes a pair here.

    Raises:
        ConfigError: `name` cannot be a site's name.
        AdmissionError: the key is no public key on P-384, or may not be admitted.
    """
    if not SITE_NAME.fullmatch(name):
        raise ConfigError([f"site {name!r}: expected up to 64 letters, digits, - and _"])
    private = new_private_key() if public_key is None else None
    public = private.public_key() if private else read_public(public_key or Path())
    root = consortium.ca.read_bytes()
    consortium.register.admit(name, public)
    secret = private_file(private) if private else b""
    line = public_line(public, name).encode() + b"\n"
    (consortium.root / "kits").mkdir(mode=0o700, exist_ok=True)
    return write_kit(
        consortium.root / "kits" / name, Kit(name, consortium.superlink, fingerprint(public), root, secret, line)
    )


def renew(
    consortium: Consortium, *, hosts: Sequence[str] = (), new_key: bool = False, now: datetime | None = None
) -> x509.Certificate:
    """A new server certificate under the same CA, for the same hosts unless others are given; returns it.

    Raises:
        AdmissionError: the CA or its key is not there, or out of date.
        ConfigError: a wrong host.
    """
    authority = _authority(consortium)
    key = certificates.new_key() if new_key else _load_key(consortium.key)
    names = tuple(hosts) or consortium.settings.hosts
    certificate = certificates.new_server_certificate(
        authority, key.public_key(), names, now or datetime.now(UTC), consortium.settings.days
    )
    # A running SuperLink takes the two files when they belong together, so no moment between them matters.
    if new_key:
        write_atomic(consortium.key, certificates.key_pem(key))
    write_atomic(consortium.certificate, certificates.certificate_pem(certificate))
    settings = Settings(names, consortium.settings.fleet_port, consortium.settings.days)
    write_json(consortium.root / SETTINGS, asdict(settings), PRIVATE)
    return certificate


def revoke(consortium: Consortium, name: str, reason: str) -> list[Entry]:
    """Takes the site's keys out of use for good. Raises AdmissionError when it has none."""
    return consortium.register.revoke(name, reason)


def certificate_warnings(consortium: Consortium, now: datetime | None = None) -> list[str]:
    """What a person must do within WARN_DAYS, a line each."""
    now = now or datetime.now(UTC)
    remedies = {
        consortium.certificate: ("the SuperLink's certificate", f"`fedmed provision renew {consortium.root}`"),
        consortium.ca: ("the consortium's CA", "provision a new consortium and hand out new kits"),
    }
    lines = [
        certificates.end_warning(thing, load_certificate(path), now, remedy)
        for path, (thing, remedy) in remedies.items()
    ]
    return [line for line in lines if line]


def load_certificate(path: Path) -> x509.Certificate:
    """Raises AdmissionError when it is not there or not a certificate."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise AdmissionError(
            f"{path} is not there or no certificate", "put it back, or run `fedmed provision renew`"
        ) from None


def _authority(consortium: Consortium) -> certificates.Authority:
    return certificates.Authority(load_certificate(consortium.ca), _load_key(consortium.root / "ca.key"))


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise AdmissionError(f"{path} is not there or no private key", "bring it back from where it is kept") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AdmissionError(f"{path} is not an elliptic curve key", "bring the right one back")
    return key
