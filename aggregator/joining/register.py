"""The register: which node keys may join, and who was ever admitted, replaced or revoked. One append-only file is both.

    >>> register = Register(folder / "register.jsonl")                                          # doctest: +SKIP
    >>> register.admit("north", key); register.revoke("north", "left the study")                # doctest: +SKIP
    >>> [(entry.site, entry.state) for entry in register.entries()]                             # doctest: +SKIP
    [('north', 'revoked')]

A line is {"time", "decision", "site", "fingerprint", "key", "by", "reason"}; what holds now is what the lines say in order.

| decision | meaning                                                                                                  |
| -------- | -------------------------------------------------------------------------------------------------------- |
| admitted | the key may join as the site                                                                             |
| replaced | a newer key of the site was seen, so this one may not any more                                           |
| revoked  | the site may not join; a key that was revoked is never admitted again, a site with a new key may be       |

| what happens                                | what comes of it                                                      |
| ------------------------------------------- | --------------------------------------------------------------------- |
| the same key is admitted again              | nothing; it is valid already                                          |
| a second key of a site                      | both are valid until the new one is seen (renewal without a gap)      |
| a third while the second was not seen       | the second is replaced at once: it never came into use                |
| a key of another site, or one of the past   | AdmissionError                                                        |
| killed while a line was written             | that line never was: nobody was told of it                            |
| a line that is not the register's           | AdmissionError: nobody is admitted by a file that cannot be trusted   |
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedmed.errors import AdmissionError
from fedmed.files import append
from fedmed.node_keys import PublicKey, fingerprint, parse_public, public_line

VALID, REPLACED, REVOKED = "valid", "replaced", "revoked"
_STATES = {"admitted": VALID, "replaced": REPLACED, "revoked": REVOKED}


@dataclass(frozen=True, slots=True)
class Entry:
    """One key: whose it is, as an OpenSSH line, and since when it is what it is. Times are ISO 8601, UTC."""

    site: str
    key: str
    fingerprint: str
    state: str
    admitted: str
    ended: str = ""
    reason: str = ""

    @property
    def public(self) -> PublicKey:
        return parse_public(self.key, f"the registered key of {self.site}")


class Register:
    """One consortium's register; safe beside other processes. The file is made at the first admission."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[Entry]:
        """Every key ever admitted, oldest first. Raises AdmissionError for a file that cannot be trusted."""
        try:
            return _replay(self.path.read_bytes(), self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise AdmissionError(f"the register {self.path} cannot be read: {error.strerror}") from None

    def valid(self) -> list[Entry]:
        """The keys that may join."""
        return [entry for entry in self.entries() if entry.state == VALID]

    def admit(self, site: str, key: PublicKey) -> Entry:
        """The key may join as `site`. Raises AdmissionError as the table above says."""
        mark = fingerprint(key)
        with self._locked() as entries:
            known = next((entry for entry in entries if entry.fingerprint == mark), None)
            if known and (known.state != VALID or known.site != site):
                raise AdmissionError(
                    f"the key {mark} is {known.state} and of site {known.site}, expected a key that was never used",
                    "make a new pair with `fedmed-site keygen DIR`",
                )
            if known:
                return known
            for unseen in [entry for entry in entries if entry.site == site and entry.state == VALID][1:]:
                self._append("replaced", unseen.site, unseen.key, unseen.fingerprint, "never came into use")
            self._append("admitted", site, public_line(key, site), mark)
        return next(entry for entry in self.entries() if entry.fingerprint == mark)

    def revoke(self, site: str, reason: str) -> list[Entry]:
        """No key of the site may join any more; returns those that could. Raises AdmissionError when there is none."""
        with self._locked() as entries:
            ended = [entry for entry in entries if entry.site == site and entry.state == VALID]
            if not ended:
                known = sorted({entry.site for entry in entries if entry.state == VALID})
                raise AdmissionError(f"site {site!r} has no valid key; those with one: {', '.join(known) or 'none'}")
            for entry in ended:
                self._append("revoked", site, entry.key, entry.fingerprint, reason)
        return ended

    def replace(self, old: Entry) -> None:
        """A newer key of the same site was seen, so `old` may not join any more."""
        with self._locked() as entries:
            if any(entry.fingerprint == old.fingerprint and entry.state == VALID for entry in entries):
                self._append("replaced", old.site, old.key, old.fingerprint, "a newer key was seen")

    @contextmanager
    def _locked(self) -> Iterator[list[Entry]]:
        """The entries, and nobody else writes meanwhile. Cuts off a line that a killed writer left behind."""
        with os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = file.read()
            entries = _replay(content, self.path)
            file.truncate(content.rfind(b"\n") + 1)
            yield entries

    def _append(self, decision: str, site: str, key: str, mark: str, reason: str = "") -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "decision": decision,
            "site": site,
            "fingerprint": mark,
            "key": key,
            "by": getpass.getuser(),
            "reason": reason,
        }
        with self.path.open("ab") as file:
            append(file.fileno(), json.dumps(line).encode() + b"\n")


def _replay(content: bytes, path: Path) -> list[Entry]:
    entries: dict[str, Entry] = {}
    lines = content.split(b"\n")[:-1]  # what follows the last line's end was told to nobody
    for number, text in enumerate(lines, start=1):
        try:
            line: dict[str, Any] = json.loads(text)
            state, mark = _STATES[line["decision"]], str(line["fingerprint"])
            if state == VALID:
                parsed = fingerprint(parse_public(str(line["key"])))
                if mark in entries or parsed != mark:
                    raise KeyError(mark)
                entries[mark] = Entry(str(line["site"]), str(line["key"]), mark, VALID, str(line["time"]))
            else:
                entries[mark] = replace(
                    entries[mark], state=state, ended=str(line["time"]), reason=str(line.get("reason", ""))
                )
        except (ValueError, TypeError, KeyError, AttributeError, AdmissionError, RecursionError):
            raise AdmissionError(
                f"line {number} of {path} is not one of the register's: nobody is admitted until a person has looked",
                "put the file back from a backup, and revoke again what was revoked since",
            ) from None
    return list(entries.values())
