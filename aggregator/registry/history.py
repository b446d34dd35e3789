"""Who moved an alias, when, from where and why: kept as tags on the versions, so that it survives with the store.

Each move of an alias adds one tag `ALIAS.NUMBER` (champion.0003) to the version that received it. `rollback` reads them
back, so two rollbacks go two champions back and do not swap the last two for ever. Two people who promote at the same time do
so one after the other, and both moves are in the history (registry/exclusive.py).

    promote(registry, "fedmed:3", "champion", "passed the gate")
    rollback(registry, "fedmed", "champion", "wrong on site north")      # champion is again what it was before

| history of `champion`                   | rollback goes to                                  |
| --------------------------------------- | ------------------------------------------------- |
| 1, 2, 3                                 | 2                                                 |
| 1, 2, 3, rolled back                    | 1                                                 |
| 1, 2, then moved to 3 in MLflow's UI    | 2                                                 |
| 1, or none                              | RegistryError: there was no one before            |
| 1, 2, 3 where 2 has been deleted        | 1                                                 |
"""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from aggregator.registry.base import CHAMPION, Registry, Version, find, holder, parse_reference
from fedmed.errors import RegistryError


@dataclass(frozen=True, slots=True)
class Change:
    """One move of an alias. `action` is promote or rollback; version numbers, 0 for none; `at` in UTC; `gate`: the
    metric before and after, where a gate was asked."""

    number: int
    action: str
    to_version: int
    from_version: int
    actor: str
    at: str
    reason: str
    gate: Mapping[str, Any] = field(default_factory=dict)


def promote(
    registry: Registry,
    reference: str,
    alias: str = CHAMPION,
    reason: str = "",
    *,
    actor: str = "",
    gate: Mapping[str, Any] | None = None,
) -> Version:
    """Give `alias` to the version that `reference` means, and record the move.

    Raises:
        RegistryError: no such version; or the version has the alias already.
    """
    target = parse_reference(reference)
    with registry.exclusive(target.name):
        versions = registry.versions(target.name)
        version = find(versions, target)
        if alias in version.aliases:
            raise RegistryError(f"{version.reference} is {alias} already", "`fedmed registry list` shows every alias")
        return _move(registry, versions, version, alias, "promote", reason, actor, gate or {})


def rollback(registry: Registry, name: str, alias: str = CHAMPION, reason: str = "", *, actor: str = "") -> Version:
    """Give `alias` back to the version that had it before the present one.

    Raises:
        RegistryError: nobody has the alias, or nobody had it before.
    """
    with registry.exclusive(name):
        versions = registry.versions(name)
        current = holder(versions, alias)
        if current is None:
            raise RegistryError(f"no version of {name!r} is {alias}", "`fedmed registry list` shows every alias")
        existing = {version.version: version for version in versions}
        earlier = [
            number for number in past_holders(read_history(versions, alias), current.version) if number in existing
        ]
        if not earlier:
            raise RegistryError(
                f"{current.reference} is the first {alias}, there is none to go back to",
                "`fedmed registry promote NAME:VERSION` gives the alias to any version",
            )
        return _move(registry, versions, existing[earlier[-1]], alias, "rollback", reason, actor, {})


def read_history(versions: Sequence[Version], alias: str) -> list[Change]:
    """Every recorded move of `alias`, oldest first."""
    pattern = re.compile(re.escape(alias) + r"\.\d{4,}")
    values = [value for version in versions for name, value in version.tags.items() if pattern.fullmatch(name)]
    return sorted((Change(**json.loads(value)) for value in values), key=lambda change: change.number)


def past_holders(history: Sequence[Change], current: int) -> list[int]:
    """Versions that held the alias before `current`, oldest first, with what was rolled back taken out."""
    held: list[int] = []
    for change in history:
        if change.from_version and (not held or held[-1] != change.from_version):
            held.append(change.from_version)
        if change.action == "rollback":
            while held and held[-1] != change.to_version:
                held.pop()
        if not held or held[-1] != change.to_version:
            held.append(change.to_version)
    return held[:-1] if held and held[-1] == current else held


def _move(
    registry: Registry,
    versions: Sequence[Version],
    version: Version,
    alias: str,
    action: str,
    reason: str,
    actor: str,
    gate: Mapping[str, Any],
) -> Version:
    before = holder(versions, alias)
    history = read_history(versions, alias)
    change = Change(
        number=history[-1].number + 1 if history else 1,
        action=action,
        to_version=version.version,
        from_version=before.version if before else 0,
        actor=actor or _user(),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        reason=reason,
        gate=dict(gate),
    )
    # The alias first: a crash in between leaves a move without a record, never a record of what did not happen.
    moved = registry.set_alias(version, alias)
    return registry.tag(moved, {f"{alias}.{change.number:04d}": json.dumps(asdict(change), sort_keys=True)})


def _user() -> str:
    try:
        return os.environ.get("FEDMED_ACTOR") or getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return f"uid {os.getuid()}"
