"""What `fedmed-site check` looks at, so that a hospital finds a fault before the federation does.

    folder -> one Finding per thing looked at: what it is, or the error that a task would meet

| looked at       | a finding when                                                                |
| --------------- | ----------------------------------------------------------------------------- |
| site's files    | a key, type or range is wrong (every problem at once); key readable by others |
| folder          | others may enter it                                                           |
| manifest        | a broken line or missing image (its line), a patient under two ids that look  |
|                 | the same, too few patients for the policy                                     |
| held out        | the same of its manifest, or a patient of the training manifest in it         |
| base models     | not on this machine, or not the hash that the policy allows                   |
| ledger          | it or its witness cannot be trusted, or nothing of the budget is left         |
| consent         | it or its witness cannot be trusted                                           |
| socket          | its path is too long, or it is not a socket                                   |
| connection      | the SuperLink would not let the site in: certificate, clock, key (reach.py)   |

A connection's own folder is looked at alone: it belongs to another user, who may not see the site's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedmed.data.manifest import load_manifest, read_pseudonyms
from fedmed.errors import BudgetExhausted, ConfigError, FedMedError, ModelError
from fedmed.models.checkpoint import checkpoint_path, checkpoint_sha256
from fedmed.wire.channel import check_socket_path
from hospital_client.budget import present_entries
from hospital_client.connection import SETTINGS, connection_folder, load_connection
from hospital_client.consent import read_consent, withdrawn
from hospital_client.held_out import cohort_name, load_held_out
from hospital_client.policy import check_cohort
from hospital_client.reach import reach
from hospital_client.settings import SiteFolder, load_site


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: `text` says how it is; `error` is None when all is well, `warnings` are of what will come."""

    thing: str
    text: str
    error: FedMedError | None = None
    warnings: tuple[str, ...] = ()


def check_site(root: Path) -> Iterator[Finding]:
    """Looks at everything a daemon needs, without starting one; goes on after a fault where it can."""
    if (root / SETTINGS).exists():
        yield _connection(root)
        return
    try:
        folder = load_site(root)
    except ConfigError as error:
        yield Finding("site files", "", error)
        return
    yield Finding("site files", f"site.yaml, policy.yaml and site.key of {folder.settings.name!r}")
    for thing, look in _CHECKS.items():
        try:
            yield Finding(thing, look(folder))
        except FedMedError as error:
            yield Finding(thing, "", error)
    yield _connection(root)


def _connection(root: Path) -> Finding:
    folder = connection_folder(root)
    if not folder.exists():
        return Finding("connection", "has joined no consortium yet (`fedmed-site join KIT DIR`)")
    if not os.access(folder, os.R_OK | os.X_OK):
        return Finding("connection", f"{folder} belongs to another user; as that one: `fedmed-site check {folder}`")
    try:
        found = reach(load_connection(root))
    except FedMedError as error:
        return Finding("connection", "", error)
    return Finding("connection", found.text, warnings=found.warnings)


def _folder(folder: SiteFolder) -> str:
    mode = stat.S_IMODE(folder.root.stat().st_mode)
    if mode & 0o077:
        raise ConfigError([f"the site's folder has mode {mode:04o}, expected 0700"], f"chmod 700 {folder.root}")
    return "closed to other users"


def _manifest(folder: SiteFolder) -> str:
    manifest = load_manifest(folder.data)
    manifest.pseudonyms(folder.key)
    check_cohort(folder.policy, manifest.num_patients)
    policy = folder.policy
    released = policy.released_patients(manifest.num_patients) or "none"
    return (
        f"{manifest.num_patients} patients, {len(manifest.examples)} examples, {manifest.quarantined} quarantined; "
        f"patient count that leaves the site: {released}; steps are scaled for {policy.nominal_patients(manifest.num_patients)}"
    )


def _held_out(folder: SiteFolder) -> str:
    manifest = load_held_out(folder, load_manifest(folder.data)) if folder.held_out else None
    if manifest is None:
        return "no patients are held out for evaluations"
    check_cohort(folder.policy, manifest.num_patients, "held-out patients")
    text = (
        f"{manifest.num_patients} patients, {len(manifest.examples)} examples, {manifest.quarantined} quarantined; none of "
        "them is in the training manifest"
    )
    if earlier := present_entries(folder).sharing(cohort_name(folder)):
        text += f"; some were in {', '.join(earlier)} before, and what that spent counts: their scores may flatter"
    return text


def _base_models(folder: SiteFolder) -> str:
    found = []
    for name in folder.settings.base_models:
        place = checkpoint_path(folder.base_place(name))
        if place is None or not place.is_dir():
            raise ModelError(f"base model {name!r} is not on this machine", "copy its folder here, or fetch it once")
        digest = checkpoint_sha256(place)
        if digest not in folder.policy.base_models:
            raise ModelError(
                f"base model {name!r} has sha256 {digest}, which policy.yaml does not allow",
                "take the consortium's checkpoint, or add this hash to base_models if it is the one that was agreed",
            )
        found.append(f"{name} {digest[:12]}")
    return ", ".join(found)


def _ledger(folder: SiteFolder) -> str:
    entries = present_entries(folder)
    spent = entries.epsilon(folder.settings.cohort, folder.policy.delta)
    budget = folder.policy.epsilon_budget
    text = (
        f"{len(entries.reservations)} tasks, epsilon {spent:.3g} of {budget:g} spent at delta {folder.policy.delta:g}; "
        f"at line {entries.generation}, its witness agrees and is {_place(folder)}"
    )
    if not spent < budget and not folder.policy.allow_no_privacy:
        raise BudgetExhausted(f"nothing left: {text}", "the site can take part in no further round of this cohort")
    return text


def _place(folder: SiteFolder) -> str:
    if os.stat(folder.witness).st_dev == os.stat(folder.root).st_dev:
        return "on the same disk as the site's folder (better on another)"
    return "on another disk than the site's folder"


def _consent(folder: SiteFolder) -> str:
    gone = withdrawn(read_consent(folder.consent))
    folders = [path for path in (folder.data, folder.held_out) if path is not None and gone]
    present = sum(len(gone & read_pseudonyms(path, folder.key)) for path in folders)
    return f"withdrawn by {len(gone)} patients, {present} of them in the present manifests"


def _socket(folder: SiteFolder) -> str:
    return check_socket_path(folder.socket)


_CHECKS: dict[str, Callable[[SiteFolder], str]] = {
    "folder": _folder,
    "manifest": _manifest,
    "held out": _held_out,
    "base models": _base_models,
    "ledger": _ledger,
    "consent": _consent,
    "socket": _socket,
}
