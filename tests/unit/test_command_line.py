"""What ends a command-line tool, as its user sees it."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from fedmed import command_line
from fedmed.errors import DataError
from fedmed.files import write_atomic


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "lines", "code"),
    [
        (DataError("a is 3, expected 4", "set a"), ["error: a is 3, expected 4", "  hint: set a"], DataError.exit_code),
        (
            PermissionError(13, "Permission denied", "/srv/x"),
            [
                "error: /srv/x: Permission denied",
                "  hint: make room or mend the permissions, then give the command again",
            ],
            1,
        ),
        (
            OSError(28, "No space left on device"),
            ["error: No space left on device", "  hint: mend it, then give the command again"],
            1,
        ),
        (KeyboardInterrupt(), ["stopped; everything that this command started has been ended"], 130),
    ],
)
def test_a_fault_that_a_person_can_mend_is_two_lines(
    capsys: pytest.CaptureFixture[str], error: BaseException, lines: list[str], code: int
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.run(raising(error))
    assert ended.value.code == code
    assert capsys.readouterr().err.splitlines() == lines


def test_ctrl_c_is_told_through_typer_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(raising(KeyboardInterrupt()))
    monkeypatch.setattr(sys, "argv", ["fedmed"])
    with pytest.raises(SystemExit) as ended:
        command_line.run(app)
    assert ended.value.code == 130
    assert "stopped; everything that this command started has been ended" in capsys.readouterr().err


def test_a_full_disk_is_told_with_the_file_that_did_not_fit(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"some"
        raise OSError(errno.ENOSPC, "No space left on device")  # as write(2) says it: without a name

    with pytest.raises(OSError, match="No space") as full:
        write_atomic(tmp_path / "scores.json", pieces())
    assert command_line.of_system(full.value).message == f"{tmp_path}/scores.json.part: No space left on device"


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command_line.run(raising(ZeroDivisionError("x")))


def test_a_folder_that_cannot_be_made_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [
        sys.executable,
        "-m",
        "aggregator.cli",
        "provision",
        "init",
        str(tmp_path / "file" / "c"),
        "--host",
        "a.example",
    ]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr and f"error: {tmp_path}" in ended.stderr
