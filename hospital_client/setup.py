"""Makes a site's folder from the commented examples in configs/site/, so that a hospital reads what it may set.

create_site(Path("north"), {"name": "north", "data": "..."}, {"epsilon_budget": "4"}) -> SiteFolder
"""

from __future__ import annotations

import json
import re
import secrets
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmed.config import CONFIG_DIR
from fedmed.errors import ConfigError, FedMedError
from fedmed.files import write_atomic, write_new
from fedmed.models.checkpoint import checkpoint_path, checkpoint_sha256
from fedmed.typed import parse_file
from hospital_client.journal import create_journal
from hospital_client.policy import Policy
from hospital_client.settings import KEY_BYTES, SiteFolder, SiteSettings, load_site, local_place

_FILES = {"site": ("example.yaml", "site.yaml"), "policy": ("policy.yaml", "policy.yaml")}


def create_site(root: Path, site: Mapping[str, str], policy: Mapping[str, str]) -> SiteFolder:
    """A new site's folder (0700) with its files and key, and empty ledger and consent, each with its witness.

    Args:
        root: made when missing.
        site, policy: YAML values by key that replace the examples' values. A site without `witness` gets DIR.witness
            beside its folder; a policy without `base_models` allows exactly the base models of site.yaml that are on
            this machine.

    Raises:
        ConfigError: the folder holds a site already, a key is unknown, or a value is wrong; nothing is left behind.
        LedgerError: the witness holds a ledger already, or cannot be made; no file is left behind.
    """
    root = root.absolute()
    if any((root / name).exists() for name in ("site.yaml", "ledger.jsonl", "consent.jsonl")):
        raise ConfigError(
            [f"{root} holds a site already"], "choose another folder: a site's ledger is never started anew"
        )
    site = {"witness": f"../{root.name}.witness", **site}
    texts = {part: _fill(part, values) for part, values in (("site", site), ("policy", policy))}
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    made: list[Path] = []
    try:
        for part, text in texts.items():
            made.append(_write(root / _FILES[part][1], text.encode()))
        made.append(_write(root / "site.key", secrets.token_bytes(KEY_BYTES)))
        if "base_models" not in policy:
            _allow_own_base_models(root)
        folder = load_site(root)
        for files in (folder.ledger, folder.consent):
            create_journal(files)
            made += [files.path, files.witness]
    except FedMedError:
        for path in made:
            path.unlink()
        raise
    return folder


def parse_settings(pairs: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """`site.KEY=VALUE` and `policy.KEY=VALUE` of the command line. Raises ConfigError for any other form."""
    values: dict[str, dict[str, str]] = {"site": {}, "policy": {}}
    problems = []
    for pair in pairs:
        match = re.fullmatch(r"(site|policy)\.(\w+)=([^\n]*)", pair)
        if match is None:
            problems.append(f"--set {pair!r} is not of the form site.KEY=VALUE or policy.KEY=VALUE")
        else:
            values[match[1]][match[2]] = match[3]
    if problems:
        raise ConfigError(problems, "for example: --set policy.epsilon_budget=4")
    return values["site"], values["policy"]


def _fill(part: str, values: Mapping[str, str]) -> str:
    """The example file with some values replaced; its comments stay."""
    example, name = _FILES[part]
    hints = typing.get_type_hints(SiteSettings if part == "site" else Policy)
    text = (CONFIG_DIR / "site" / example).read_text(encoding="utf-8")
    for key, value in values.items():
        if hints.get(key) is str and value[:1] not in ("'", '"'):
            value = json.dumps(value)  # a name like 007, or a mode like 0660, is a text
        # Every key of the examples is one line at the margin: `key: value   # comment`.
        line = f"{key}: {value}".replace("\\", r"\\")
        text, count = re.subn(rf"(?m)^{key}: .*?(?=\s*(#|$))", line, text)
        if count != 1:
            raise ConfigError([f"{part}.{key}: unknown key of {name}"], f"configs/site/{example} lists the keys")
    return text


def _allow_own_base_models(root: Path) -> None:
    """Puts the hashes of site.yaml's base models into policy.yaml."""
    path = root / "policy.yaml"
    text = path.read_text(encoding="utf-8")
    hashes = own_base_models(root)
    write_atomic(path, text.replace("base_models: []", f"base_models: [{', '.join(hashes)}]", 1).encode())


def own_base_models(root: Path) -> list[str]:
    """Hashes of the base models of site.yaml. Raises ConfigError for one that is not on this machine."""
    settings = parse_file(SiteSettings, root / "site.yaml", "")
    hashes = []
    for name, place in settings.base_models.items():
        folder = checkpoint_path(local_place(root, place))
        if folder is None or not folder.is_dir():
            raise ConfigError(
                [f"site.base_models: {name}: {place!r} is not a checkpoint on this machine"],
                "bring it here first, or give the allowed hash with --set policy.base_models=[SHA256]",
            )
        hashes.append(checkpoint_sha256(folder))
    return hashes


def _write(path: Path, data: bytes) -> Path:
    """A new file, on disk for good: a site whose key a power cut took could never verify its ledger again."""
    write_new(path, data)
    return path
