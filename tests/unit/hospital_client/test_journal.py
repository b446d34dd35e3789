"""Journal and witness: whatever is done to the two files, nothing that somebody was told of is lost unnoticed."""

import errno
import os
import shlex
import subprocess
import threading
from pathlib import Path

import pytest

from fedmed.errors import LedgerError
from hospital_client.chain import whole_lines
from hospital_client.fakes import journal_files
from hospital_client.journal import Journal, create_journal, read_journal
from hospital_client.witness import JournalFiles


@pytest.fixture(autouse=True)
def without_the_disks_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def files(tmp_path: Path) -> JournalFiles:
    """A journal of three lines."""
    files = journal_files(tmp_path)
    create_journal(files)
    append(files, 3)
    return files


def append(files: JournalFiles, count: int) -> None:
    journal = Journal(files)
    for _ in range(count):
        journal.append({"kind": "n", "value": len(journal.lines)})
    journal.close()


def values(files: JournalFiles) -> list[int]:
    """As the reader and as opening see them; afterwards the two files are the same."""
    read = [line.body["value"] for line in read_journal(files)]
    journal = Journal(files)
    assert [line.body["value"] for line in journal.lines] == read
    journal.close()
    assert files.path.read_bytes() == files.witness.read_bytes()
    return read


def fault(files: JournalFiles) -> LedgerError:
    """What opening says, and reading beside it; neither touches the files."""
    before = [path.read_bytes() for path in (files.path, files.witness) if path.exists()]
    for look in (read_journal, Journal):
        with pytest.raises(LedgerError) as caught:
            look(files)
    assert [path.read_bytes() for path in (files.path, files.witness) if path.exists()] == before
    return caught.value


def run_hint(error: LedgerError) -> None:
    """Does what the hint says: the command between backquotes."""
    subprocess.run(["sh", "-c", error.hint.split("`")[1]], check=True)


def test_the_witness_has_every_line_and_both_are_private(files: JournalFiles) -> None:
    assert values(files) == [0, 1, 2]
    modes = [os.stat(path).st_mode & 0o777 for path in (files.path, files.witness, files.witness.parent)]
    assert modes == [0o600, 0o600, 0o700]


def test_killed_at_any_byte_the_line_is_cut_off_or_counts_and_nobody_is_asked(files: JournalFiles) -> None:
    """Every prefix of the last line in the journal, then every prefix of it in the witness."""
    whole = files.path.read_bytes()
    start = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for size in range(start, len(whole) + 1):
        files.path.write_bytes(whole[:size])
        files.witness.write_bytes(whole[:start])
        assert values(files) == ([0, 1, 2] if size == len(whole) else [0, 1])
        files.path.write_bytes(whole)
        files.witness.write_bytes(whole[:size])
        assert values(files) == [0, 1, 2]


@pytest.mark.parametrize("junk", [b"\0" * 40, b"\0" * 40 + b"\n", b'{"value": 9}\n'])
def test_what_a_power_cut_leaves_of_the_last_line_is_taken_away(files: JournalFiles, junk: bytes) -> None:
    whole = files.path.read_bytes()
    files.path.write_bytes(whole + junk)
    assert values(files) == [0, 1, 2]
    append(files, 1)
    files.witness.write_bytes(whole + junk)  # in the witness, while the journal has the line
    assert values(files) == [0, 1, 2, 3]


def test_an_old_witness_is_brought_up(files: JournalFiles) -> None:
    old = files.witness.read_bytes()
    append(files, 4)
    files.witness.write_bytes(old)
    assert values(files) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_put_back_from_a_backup_is_noticed_and_the_hint_mends_it(files: JournalFiles, kept: int) -> None:
    files.path.write_bytes(b"".join(files.path.read_bytes().splitlines(keepends=True)[:kept]))
    error = fault(files)
    assert error.message == f"ledger.jsonl was put back from a backup: it ends at line {kept}, its witness has line 3"
    run_hint(error)
    assert values(files) == [0, 1, 2]


def test_put_back_while_the_witness_has_half_a_line_more(files: JournalFiles) -> None:
    old = files.path.read_bytes()
    append(files, 1)
    files.path.write_bytes(old)
    files.witness.write_bytes(files.witness.read_bytes()[:-5])
    error = fault(files)
    assert "has the beginning of line 4" in error.message
    run_hint(error)
    assert values(files) == [0, 1, 2]  # nobody was told of line 4: the witness did not have it whole


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_changed_line_is_named_and_the_hint_mends_it(files: JournalFiles, line: int) -> None:
    lines = files.path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"value":', b'"value":1')
    files.path.write_bytes(b"".join(lines))
    error = fault(files)
    assert f"ledger.jsonl line {line + 1} was changed" in error.message
    run_hint(error)
    assert values(files) == [0, 1, 2]


def test_dropped_swapped_reformatted_and_garbage_lines_are_noticed(files: JournalFiles) -> None:
    a, b, c = files.path.read_bytes().splitlines(keepends=True)
    spaced = b.replace(b'":', b'": ')
    for lines in (
        [b, c],
        [a, c],
        [b, a, c],
        [a, b, b"[]\n"],
        [a, b"\n", b, c],
        [a, b'{"hash": 3}\n', c],
        [a, spaced, c],
    ):
        files.path.write_bytes(b"".join(lines))
        fault(files)
        both = JournalFiles(files.path, files.path.with_name("copy"), files.key)
        both.witness.write_bytes(files.path.read_bytes())
        fault(both)


def test_a_damaged_witness_is_noticed_and_the_hint_makes_it_anew(files: JournalFiles) -> None:
    files.witness.write_bytes(files.witness.read_bytes().replace(b'"value":1', b'"value":7'))
    error = fault(files)
    assert "the witness of ledger.jsonl is not of this file from line 2 on" in error.message
    run_hint(error)
    assert values(files) == [0, 1, 2]


def test_a_missing_witness_fails_closed_and_the_hint_makes_it_anew(files: JournalFiles) -> None:
    files.witness.unlink()
    files.witness.parent.rmdir()
    error = fault(files)
    assert "witness" in error.message
    assert "mount its disk" in error.hint
    run_hint(error)
    assert values(files) == [0, 1, 2]


def test_a_missing_journal_fails_closed_and_the_hint_mends_it(files: JournalFiles) -> None:
    files.path.unlink()
    error = fault(files)
    assert "ledger.jsonl cannot be opened" in error.message
    run_hint(error)
    assert values(files) == [0, 1, 2]


def test_two_pasts_under_one_key_fail_closed(files: JournalFiles) -> None:
    """The site went on from a backup under a new witness, then the old witness came back."""
    old, true_witness = files.path.read_bytes(), files.witness
    append(files, 1)
    seen = true_witness.read_bytes()
    files.path.write_bytes(old)
    true_witness.write_bytes(old)
    journal = Journal(files)
    journal.append({"kind": "n", "value": 100})
    journal.close()
    true_witness.write_bytes(seen)
    error = fault(files)
    assert "went different ways from line 4 on" in error.message
    assert "`" not in error.hint  # no command mends it


def test_another_key_fails_closed(files: JournalFiles) -> None:
    error = fault(JournalFiles(files.path, files.witness, b"x" * 32))
    assert "line 1 was changed, lost or written with another key" in error.message
    assert "site.key" in error.hint


def test_another_sites_witness_fails_closed(files: JournalFiles, tmp_path: Path) -> None:
    other = JournalFiles(tmp_path / "other.jsonl", tmp_path / "elsewhere" / "ledger.jsonl", b"o" * 32)
    create_journal(other)
    append(other, 2)
    error = fault(JournalFiles(files.path, other.witness, files.key))
    assert "of another site" in error.message


def test_a_file_is_no_witness_of_itself(files: JournalFiles) -> None:
    with pytest.raises(LedgerError, match="is the file itself"):
        Journal(JournalFiles(files.path, files.path, files.key))


def test_it_is_never_started_anew(files: JournalFiles) -> None:
    for path in (files.path, files.witness):
        path.unlink()
        with pytest.raises(LedgerError, match="exists already"):
            create_journal(files)
        path.write_bytes(b"")
    assert shlex.quote(str(files.path)) in files.from_witness


def test_a_reader_beside_a_writer_never_sees_a_fault(files: JournalFiles) -> None:
    """Lines larger than a page, so that a reader can meet half of one."""
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set():
            seen.append(len(read_journal(files)))

    thread = threading.Thread(target=read)
    thread.start()
    journal = Journal(files)
    for _ in range(60):
        journal.append({"kind": "n", "value": "x" * 20_000})
    done.set()
    thread.join()
    journal.close()
    assert seen == sorted(seen)
    assert seen[-1] <= 63


def test_lines_appended_between_the_readers_two_looks_are_no_fault(
    files: JournalFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = files.path.read_bytes(), files.witness.read_bytes()
    append(files, 3)
    journal, witness = files.path.read_bytes(), files.witness.read_bytes()
    files.path.write_bytes(old[0])
    files.witness.write_bytes(old[1])
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        found = real(path)
        if path == files.witness:  # two whole lines and half of the third get in between
            files.path.write_bytes(journal[:-9])
            files.witness.write_bytes(witness[: len(witness) - len(witness.splitlines(keepends=True)[-1])])
        return found

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert len(read_journal(files)) == 5


@pytest.mark.parametrize("which", ["journal", "witness"])
def test_a_full_disk_is_an_error_and_the_next_opening_is_whole(
    files: JournalFiles, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(files)
    full = os.stat(files.path if which == "journal" else files.witness).st_ino
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if os.fstat(fd).st_ino == full:
            real(fd, data[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(LedgerError, match="cannot be written: No space left on device"):
        journal.append({"kind": "n", "value": 3})
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="a moment ago"):
        journal.append({"kind": "n", "value": 3})
    journal.close()
    # In the witness's case the line is in the journal: it counts, although nobody was told.
    assert values(files) == ([0, 1, 2] if which == "journal" else [0, 1, 2, 3])


def test_what_a_line_is(files: JournalFiles) -> None:
    lines, rest = whole_lines(files.path.read_bytes() + b"{", files.key)
    assert [line.sequence for line in lines] == [1, 2, 3]
    assert rest == b"{"
