"""An append-only file of JSON lines that shows when it was changed or put back: the storage under ledger and consent.

    body -> one sealed line -> journal, fsync -> the same line -> witness, fsync -> caller goes on

The witness is a second copy of the lines outside the site's folder, where a backup of that folder does not reach. A
line's `sequence` is the journal's generation: it only grows, and a journal that is put back from a backup is behind its
witness. hospital_client.chain says what a line is, hospital_client.witness what the two files mean together.

| state on disk                                     | what opening does                                       |
| ------------------------------------------------- | ------------------------------------------------------- |
| killed before the line was whole                  | it is cut off: nobody was told of it                    |
| killed between journal and witness, or in the     | the line counts; the witness is brought up              |
| middle of the witness's line                      |                                                         |
| put back from a backup; a line changed, dropped,  | LedgerError naming the line, and the command that       |
| swapped, or of another key                        | mends it where the witness holds it                     |
| witness missing, or not of this journal           | LedgerError: fail closed                                |
| another process holds it                          | LedgerError: locked                                     |
| disk full while appending                         | the part written is taken back, LedgerError             |
| the witness's disk full or gone while appending   | LedgerError; the line is in the journal and counts      |
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Any

from fedmed.errors import LedgerError
from fedmed.files import append, create, cut, sync_folder
from hospital_client.chain import Line, seal
from hospital_client.witness import JournalFiles, reconcile


class Journal:
    """The single writer of one journal. Holds its lock until `close` or the end of the process.

    Raises:
        LedgerError: on opening, when the files cannot be trusted or another process holds them.
    """

    def __init__(self, files: JournalFiles) -> None:
        self.files = files
        self._broken = False
        self._fd = _open_locked(files)
        self._witness = -1
        try:
            self._witness = _open_witness(files, self._fd)
            self.lines = self._mend()
        except BaseException:
            self.close()
            raise

    def append(self, body: dict[str, Any]) -> Line:
        """The line, once it is on disk for good in both files.

        Raises:
            LedgerError: it is not; then nobody may act on it. The journal takes no further line until it is opened anew.
        """
        name = self.files.path.name
        if self._broken:
            raise LedgerError(
                f"{name} could not be written a moment ago and is closed", "mend the disk, then start the site anew"
            )
        line, data = seal(self.files.key, body, self.lines)
        self._broken = True  # after a failed write or fsync nobody knows what is on disk: only a fresh look decides
        self._append_journal(data)
        try:
            append(self._witness, data)
        except OSError as error:
            raise LedgerError(
                f"the witness of {name} cannot be written: {error.strerror}",
                f"free space on its disk, or mount it: {self.files.witness.parent}; then start the site anew",
            ) from error
        self._broken = False
        self.lines.append(line)
        return line

    def close(self) -> None:
        """Gives the lock back."""
        for fd in (self._fd, self._witness):
            if fd >= 0:
                os.close(fd)
        self._fd = self._witness = -1

    def _append_journal(self, data: bytes) -> None:
        size = os.fstat(self._fd).st_size
        try:
            append(self._fd, data)
        except OSError as error:
            with contextlib.suppress(OSError):  # what stays is cut off by the next opening
                os.ftruncate(self._fd, size)
            raise LedgerError(
                f"{self.files.path.name} cannot be written: {error.strerror}", "free space, then start the site anew"
            ) from error

    def _mend(self) -> list[Line]:
        """The lines that count, on disk for good in both files before anybody relies on them.

        Who wrote them may have been killed before an fsync. Each call here may be this process's last one, too.
        """
        journal, witness = _read(self.files)
        agreed = reconcile(journal, witness, self.files)
        try:
            cut(self._witness, agreed.witness_size)  # before the journal: else that would look put back from a backup
            cut(self._fd, agreed.journal_size)
            os.fsync(self._fd)
            append(self._witness, journal[agreed.witness_size : agreed.journal_size])
        except OSError as error:
            raise LedgerError(
                f"{self.files.path.name} and its witness cannot be brought together: {error.strerror}", "free space"
            ) from error
        return agreed.lines


def create_journal(files: JournalFiles) -> None:
    """An empty journal with its witness.

    Raises:
        LedgerError: there is one already, or a file cannot be made; then no file is left behind.
    """
    for path in (files.path, files.witness):
        if path.exists():
            raise LedgerError(
                f"{path} exists already",
                "a ledger is never started anew: choose another site folder (and, with --set site.witness=FOLDER, "
                "another witness)",
            )
    try:
        if not files.witness.parent.is_dir():
            files.witness.parent.mkdir(mode=0o700, parents=True)
            sync_folder(files.witness.parent.parent)
        create(files.witness)
    except OSError as error:
        raise LedgerError(
            f"the witness {files.witness} cannot be made: {error.strerror}",
            "choose a folder that the site's user may write: --set site.witness=FOLDER",
        ) from None
    try:
        create(files.path)
    except OSError as error:
        files.witness.unlink()
        raise LedgerError(f"{files.path} cannot be made: {error.strerror}") from None


def read_journal(files: JournalFiles) -> list[Line]:
    """Every line that counts, verified, without the lock (a reader beside a writer is fine).

    Raises:
        LedgerError: naming the first line that cannot be trusted and how to mend it.
    """
    before: tuple[bytes, bytes] | None = None
    while True:
        read = _read(files)
        try:
            return reconcile(*read, files).lines
        except LedgerError:
            # Lines that were appended between the two reads are no fault. If nothing changed since the last look, it is.
            if read == before:
                raise
            before = read


def _read(files: JournalFiles) -> tuple[bytes, bytes]:
    """Journal and witness. The witness first: the journal, read later, then holds all that the witness does."""
    try:
        witness = files.witness.read_bytes()
    except OSError as error:
        raise _no_witness(files, error) from None
    try:
        return files.path.read_bytes(), witness
    except OSError as error:
        raise _no_journal(files, error) from None


def _open_locked(files: JournalFiles) -> int:
    try:
        fd = os.open(files.path, os.O_RDWR | os.O_APPEND)
    except OSError as error:
        raise _no_journal(files, error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise LedgerError(
            f"{files.path.name} is locked: another process writes it",
            "wait for it, or stop it: one file has one writer",
        ) from None
    return fd


def _open_witness(files: JournalFiles, journal: int) -> int:
    try:
        fd = os.open(files.witness, os.O_RDWR | os.O_APPEND)
    except OSError as error:
        raise _no_witness(files, error) from None
    if os.path.samestat(os.fstat(fd), os.fstat(journal)):
        os.close(fd)
        raise LedgerError(
            f"the witness of {files.path.name} is the file itself", "set witness in site.yaml to another folder"
        )
    return fd


def _no_journal(files: JournalFiles, error: OSError) -> LedgerError:
    return LedgerError(
        f"{files.path.name} cannot be opened: {error.strerror}",
        f"train nothing until a person has looked; if it is lost, {files.from_witness} puts back every line",
    )


def _no_witness(files: JournalFiles, error: OSError) -> LedgerError:
    return LedgerError(
        f"the witness {files.witness} cannot be opened: {error.strerror}",
        f"mount its disk, or correct witness in site.yaml; only if it is lost for good and {files.path.name} was never put "
        f"back from a backup, {files.to_witness} makes it anew",
    )
