"""A site's folder, read once: site.yaml, policy.yaml and the site's key.

DIR/site.yaml DIR/policy.yaml DIR/site.key -> load_site(DIR) -> SiteFolder, or ConfigError with every problem at once

DIR (0700)
  site.yaml policy.yaml       what the hospital fills in
  site.key (0600)             32 random bytes: seals the ledger, hides who is in it; never leaves
  ledger.jsonl                what was spent            audit.jsonl   what was decided
  consent.jsonl               who withdrew consent
  results/                    the last results, to send again            daemon.log daemon.lock
  kept/RUN/                   the site's own tensors of a run, where its method has some
WITNESS/ledger.jsonl consent.jsonl    the same lines once more, outside DIR: a journal put back from a backup is noticed
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fedmed.errors import ConfigError
from fedmed.typed import choice, number, parse_file
from hospital_client.policy import Policy
from hospital_client.witness import JournalFiles

T = TypeVar("T")
KEY_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SHA256 = re.compile(r"[0-9a-f]{64}")
_HINT = "the comments in configs/site/ say what every key means"


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """site.yaml, parsed. configs/site/example.yaml says what every key means."""

    name: str
    data: str
    cohort: str
    witness: str
    socket: str
    socket_mode: str
    base_models: dict[str, str]
    gradient_checkpointing: bool
    held_out: str
    device: str = choice("auto", "cpu", "cuda")
    physical_batch: int = number(0)
    base_dtype: str = choice("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class SiteFolder:
    """Everything the hospital set, and where its files are."""

    root: Path
    settings: SiteSettings
    policy: Policy
    key: bytes = field(repr=False)

    @property
    def data(self) -> Path:
        return self.root / self.settings.data

    @property
    def held_out(self) -> Path | None:
        """The manifest of patients who are not trained on; None where there is none."""
        return self.root / self.settings.held_out if self.settings.held_out else None

    @property
    def socket(self) -> Path:
        return self.root / self.settings.socket

    @property
    def socket_mode(self) -> int:
        return int(self.settings.socket_mode, 8)

    @property
    def witness(self) -> Path:
        """The folder with the second copy of the journals; outside `root`."""
        return witness_folder(self.root, self.settings)

    @property
    def ledger(self) -> JournalFiles:
        return self._journal("ledger.jsonl")

    @property
    def consent(self) -> JournalFiles:
        return self._journal("consent.jsonl")

    @property
    def audit(self) -> Path:
        return self.root / "audit.jsonl"

    def _journal(self, name: str) -> JournalFiles:
        return JournalFiles(self.root / name, self.witness / name, self.key)

    def base_place(self, name: str) -> str:
        """Where a base model of site.yaml is: a folder, or a name that `load_base` knows."""
        return local_place(self.root, self.settings.base_models[name])


def local_place(root: Path, place: str) -> str:
    """A base model's place, a relative folder taken from the site's folder."""
    return str(root / place) if place.startswith(".") or (root / place).is_dir() else place


def load_site(root: Path) -> SiteFolder:
    """The site's folder, checked.

    Raises:
        ConfigError: not a site's folder, or every problem of its files at once.
    """
    root = root.absolute()
    if not (root / "site.yaml").exists():
        raise ConfigError(
            [f"{root} is not a site's folder: it has no site.yaml"], "make one with `fedmed-site init DIR`"
        )
    problems: list[str] = []
    settings = _read(SiteSettings, root / "site.yaml", problems)
    policy = _read(Policy, root / "policy.yaml", problems)
    key = _read_key(root / "site.key", problems)
    if settings is not None:
        problems += _check_settings(settings, root)
    if policy is not None:
        problems += [
            f"policy.yaml: base_models: {item!r} is not a SHA-256 of 64 hexadecimal digits"
            for item in policy.base_models
            if not SHA256.fullmatch(item)
        ]
    if problems or settings is None or policy is None:
        raise ConfigError(problems, _HINT)
    return SiteFolder(root, settings, policy, key)


def witness_folder(root: Path, settings: SiteSettings) -> Path:
    """`witness` of site.yaml as an absolute folder."""
    return Path(os.path.normpath(root / settings.witness))


def _read(cls: type[T], path: Path, problems: list[str]) -> T | None:
    try:
        return parse_file(cls, path, _HINT)
    except ConfigError as error:
        problems += error.problems
        return None


def _check_settings(settings: SiteSettings, root: Path) -> list[str]:
    problems = [
        f"site.yaml: {key}={value!r}: expected up to 64 letters, digits, - and _"
        for key, value in [("name", settings.name), ("cohort", settings.cohort)]
        if not NAME.fullmatch(value)
    ]
    if not re.fullmatch(r"0?[0-7]{3}", settings.socket_mode):
        problems.append(
            f'site.yaml: socket_mode={settings.socket_mode!r}: expected octal digits in quotes, such as "0660"'
        )
    problems += [f"site.yaml: {key} is empty" for key in ("data", "socket") if not getattr(settings, key)]
    if witness_folder(root, settings).resolve().is_relative_to(root.resolve()):
        problems.append(
            f"site.yaml: witness={settings.witness!r} lies in the site's folder: a backup would put both back unnoticed"
        )
    return problems


def _read_key(path: Path, problems: list[str]) -> bytes:
    try:
        key, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        problems.append(
            f"site.key: {error.strerror}; without it the ledger cannot be verified: restore it from a backup"
        )
        return b""
    if len(key) != KEY_BYTES:
        problems.append(f"site.key: {len(key)} bytes, expected {KEY_BYTES}: restore it from a backup")
    if mode & 0o077:
        problems.append(f"site.key: mode {mode:04o}, expected 0600: run `chmod 600 site.key`")
    if path.stat().st_uid != os.geteuid():
        problems.append(f"site.key: belongs to user {path.stat().st_uid}, not to this one ({os.geteuid()})")
    return key
