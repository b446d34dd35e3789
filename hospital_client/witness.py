"""Compares a journal with its witness, the copy of its lines outside the site's folder. Pure: bytes in, lines out.

    bytes of ledger.jsonl + bytes of its witness -> reconcile -> the lines that count, or LedgerError and how to mend it

A line is written to the journal, then to the witness, and only then is anybody told of it. So whatever was told is whole
in both files, and at most one line is under way: the journal's last.

| ledger against witness                               | what it means                              | what follows     |
| ---------------------------------------------------- | ------------------------------------------ | ---------------- |
| the same                                             |                                            | all lines count  |
| the witness lacks lines, or the end of its last      | killed between the two, or an old witness  | all lines count  |
| one more line in the ledger, not whole, and not      | killed while writing it: nobody was told   | it is cut off    |
| whole in the witness                                 |                                            |                  |
| the ledger lacks lines that the witness has          | put back from a backup                     | LedgerError      |
| a ledger line that does not verify                   | changed, damaged, or another key           | LedgerError      |
| a witness line that does not verify                  | changed, damaged, or another site's        | LedgerError      |
| both verify and differ                               | the site went on from a backup             | LedgerError      |
| both put back to the same moment                     | not noticed: keep the witness where a      | all lines count  |
|                                                      | backup of the site's folder does not reach |                  |
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from fedmed.errors import LedgerError
from hospital_client.chain import Line, whole_lines

_LOOK = "train nothing until a person has looked"


@dataclass(frozen=True, slots=True)
class JournalFiles:
    """Where a journal and its witness are, and the key that seals their lines."""

    path: Path
    witness: Path
    key: bytes = field(repr=False)

    @property
    def from_witness(self) -> str:
        """The command that puts the witness's lines into the journal."""
        return f"`cp {shlex.quote(str(self.witness))} {shlex.quote(str(self.path))}`"

    @property
    def to_witness(self) -> str:
        """The command that makes the witness anew from the journal."""
        return (
            f"`mkdir -p -m 700 {shlex.quote(str(self.witness.parent))} && "
            f"cp {shlex.quote(str(self.path))} {shlex.quote(str(self.witness))}`"
        )


@dataclass(frozen=True, slots=True)
class Agreed:
    """What counts: the lines, and how many bytes of each file they, or the first of them, are."""

    lines: list[Line]
    journal_size: int
    witness_size: int


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two files: its whole lines, and the bytes after them."""

    lines: list[Line]
    rest: bytes

    @property
    def one_piece(self) -> bool:
        """Whether the bytes after the whole lines are at most one line's, with or without its end."""
        return b"\n" not in self.rest[:-1]


def reconcile(journal: bytes, witness: bytes, files: JournalFiles) -> Agreed:
    """The lines that count.

    Raises:
        LedgerError: the two do not agree as the table says; the hint names the command that mends it where one does.
    """
    ours, theirs = _Side(*whole_lines(journal, files.key)), _Side(*whole_lines(witness, files.key))
    agree = ours.lines[: len(theirs.lines)] == theirs.lines
    if agree and (_is_complete(ours, theirs) or _is_under_way(ours, theirs)):
        return Agreed(ours.lines, len(journal) - len(ours.rest), len(witness) - len(theirs.rest))
    raise _fault(ours, theirs, files)


def _is_complete(ours: _Side, theirs: _Side) -> bool:
    """Whether the journal is whole and holds the line that the witness has only begun, if it has begun one."""
    return not ours.rest and (not theirs.rest or (theirs.one_piece and len(ours.lines) > len(theirs.lines)))


def _is_under_way(ours: _Side, theirs: _Side) -> bool:
    """Whether what follows the journal's whole lines is the one line of which nobody was told."""
    untold = b"\n" not in theirs.rest and ours.rest.startswith(theirs.rest)
    return untold and ours.one_piece and len(ours.lines) == len(theirs.lines)


def _fault(ours: _Side, theirs: _Side, files: JournalFiles) -> LedgerError:
    name, have, seen = files.path.name, len(ours.lines), len(theirs.lines)
    both = min(have, seen)
    if both and ours.lines[both - 1] != theirs.lines[both - 1]:
        first = next(n for n in range(both) if ours.lines[n] != theirs.lines[n]) + 1
        return LedgerError(
            f"{name} and its witness went different ways from line {first} on: both were written with the site's key",
            f"{_LOOK}: keep copies of both files; what either of them says was reserved is spent",
        )
    begun = seen == have and theirs.rest and b"\n" not in theirs.rest
    if not ours.rest and (seen > have or begun):
        saw = f"has line {seen}" if seen > have else f"has the beginning of line {have + 1}"
        return LedgerError(
            f"{name} was put back from a backup: it ends at line {have}, its witness {saw}",
            f"{_LOOK}; then {files.from_witness} puts back every line",
        )
    if seen > have:
        return LedgerError(
            f"{name} line {have + 1} was changed, lost or cut off; its witness holds the line whole",
            f"{_LOOK}; then {files.from_witness} puts back every line",
        )
    if ours.rest:
        return LedgerError(
            f"{name} line {have + 1} was changed, lost or written with another key",
            f"{_LOOK}: is site.key the site's own? Put {name} back from the newest backup: its witness, which ends at "
            f"line {seen}, tells what the backup lacks",
        )
    return LedgerError(
        f"the witness of {name} is not of this file from line {seen + 1} on: changed, damaged, or of another site",
        f"{_LOOK}: does site.yaml name the site's own witness? If it does, and {name} was never put back from "
        f"a backup, {files.to_witness} makes the witness anew",
    )
