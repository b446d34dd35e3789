"""Consent withdrawn: recorded for good, and obeyed by the next draw, also in the middle of a round.

    patient ids (file or stdin) -> pseudonyms -> consent.jsonl (hospital_client.journal) -> Withdrawals() -> left out

    >>> withdrawn([Change("withdraw", "", frozenset({b"1", b"2"})), Change("restore", "", frozenset({b"2"}))])
    frozenset({b'1'})

| case                               | what holds                                                                       |
| ---------------------------------- | -------------------------------------------------------------------------------- |
| withdrawn while a round trains     | the next step draws without the patient; steps already done stay in the adapter, |
|                                    | covered by the guarantee like everybody's                                        |
| id not in the present manifest     | recorded all the same: it holds for later manifests                              |
| file cannot be trusted, or is gone | LedgerError: nothing is trained, a running round ends and stays spent            |
| public numbers                     | patient count, lot size and accounting stay: they are upper bounds, and a change |
|                                    | would tell when somebody withdrew                                                |
| what is on disk                    | keyed pseudonyms, never an id; counts alone in audit.jsonl and in every message  |

Lines: {"kind": "withdraw" or "restore", "members": pseudonyms of those whose state changed}.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmed.data.manifest import pseudonym
from fedmed.errors import DataError, LedgerError
from hospital_client.audit import Audit
from hospital_client.chain import Line
from hospital_client.journal import Journal, read_journal
from hospital_client.membership import pack, unpack
from hospital_client.witness import JournalFiles

WITHDRAW, RESTORE = "withdraw", "restore"


@dataclass(frozen=True, slots=True)
class Change:
    """One entry: some members withdrew, or what was a mistake is undone. `time` in UTC, ISO 8601."""

    kind: str
    time: str
    members: frozenset[bytes] = field(repr=False)


class Withdrawals:
    """Who is left out, looked up anew whenever consent.jsonl has changed. Call it before every draw: two `stat`s.

    Args:
        files: consent.jsonl and its witness.
        pseudonyms: of the manifest's patients, in its order.

    Raises:
        LedgerError: when called, if the files cannot be trusted.
    """

    def __init__(self, files: JournalFiles, pseudonyms: Sequence[bytes]) -> None:
        self._files = files
        self._pseudonyms = pseudonyms
        self._stamp: object = None
        self._left_out: frozenset[int] = frozenset()

    def __call__(self) -> frozenset[int]:
        """Indices of the patients that may not be drawn."""
        stamp = _stamp(self._files)  # taken first: a change while reading is read again
        if stamp != self._stamp:
            gone = withdrawn(read_consent(self._files))
            self._left_out = frozenset(index for index, own in enumerate(self._pseudonyms) if own in gone)
            self._stamp = stamp
        return self._left_out


def withdrawn(changes: Iterable[Change]) -> frozenset[bytes]:
    """Pseudonyms of all who are withdrawn after `changes`."""
    gone: frozenset[bytes] = frozenset()
    for change in changes:
        gone = gone | change.members if change.kind == WITHDRAW else gone - change.members
    return gone


def read_consent(files: JournalFiles) -> list[Change]:
    """Every entry, verified, without the lock. Raises LedgerError when the files cannot be trusted."""
    return [_change(line, files.path.name) for line in read_journal(files)]


def record(files: JournalFiles, kind: str, members: frozenset[bytes], audit: Callable[[str], None]) -> frozenset[bytes]:
    """Puts a change of consent on disk; when this returns, the next draw obeys it.

    Args:
        kind: WITHDRAW or RESTORE.
        members: pseudonyms; those whose state does not change are left out.
        audit: gets one line of counts before the change takes effect.

    Returns:
        The members whose state changed.

    Raises:
        LedgerError: the files cannot be trusted or written, or somebody else is writing them; nothing was recorded.
    """
    journal = Journal(files)
    try:
        gone = withdrawn(_change(line, files.path.name) for line in journal.lines)
        changed = members - gone if kind == WITHDRAW else members & gone
        if changed:
            audit(f"consent {kind}: {len(changed)} patients, {len(gone ^ changed)} withdrawn in all")
            journal.append({"kind": kind, "members": pack(changed)})
        return changed
    finally:
        journal.close()


def audit_to(path: Path) -> Callable[[str], None]:
    """Writes one line to the site's audit, beside a running daemon; raises LedgerError when it cannot."""

    def write(message: str) -> None:
        try:
            audit = Audit(path)
            try:
                audit.write("consent", message=message)
            finally:
                audit.close()
        except OSError as error:
            raise LedgerError(
                f"{path.name} cannot be written: {error.strerror}",
                "free space, then say it again: nothing was recorded",
            ) from None

    return write


def read_members(text: bytes, key: bytes) -> frozenset[bytes]:
    """Pseudonyms of the patient ids in a file: UTF-8, one id a line, blank lines left out.

    Raises:
        DataError: not UTF-8, or no id in it.
    """
    try:
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError("the list of patients is not text in UTF-8", "write one patient id a line") from None
    members = frozenset(pseudonym(line, key) for line in lines if line.strip())
    if not members:
        raise DataError("the list of patients is empty", "write one patient id a line")
    return members


def _change(line: Line, name: str) -> Change:
    body = line.body
    try:
        if body["kind"] in (WITHDRAW, RESTORE):
            return Change(body["kind"], body["time"], unpack(body["members"]))
    except (KeyError, TypeError, ValueError):
        pass
    raise LedgerError(
        f"{name} line {line.sequence} is not an entry that this version knows",
        "install the FedMed release that wrote it, or a later one",
    )


def _stamp(files: JournalFiles) -> tuple[tuple[int, int, int, int], ...]:
    """Changes whenever one of the two files does."""
    try:
        found = [os.stat(path) for path in (files.path, files.witness)]
    except OSError as error:
        raise LedgerError(
            f"{files.path.name} or its witness cannot be looked at: {error.strerror}", "`fedmed-site check` says more"
        ) from None
    return tuple((item.st_dev, item.st_ino, item.st_size, item.st_mtime_ns) for item in found)
