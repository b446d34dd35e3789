"""What a user of `fedmed` sees for a mistake: two lines, an exit code, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest


def fedmed(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])} | environment
    command = [sys.executable, "-m", "aggregator.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["run", "nosuch"], 2, "experiment 'nosuch'"),
        (["run", "demo", "training.rounds=0"], 2, "training.rounds=0"),
        (["run", "demo", "rounds"], 2, "not of the form key=value"),
        (["data", "fetch", "nosuch"], 3, "nosuch"),
        (["base", "hash", "./nosuch"], 4, "not on this disk"),
        (["resume", "nosuch"], 8, "not a run"),
        (["serve", "fedmed"], 9, "fedmed"),
        (["registry", "promote", "fedmed:1", "--reason", " "], 9, "--reason is empty"),
        (["privacy", "audit", "--fault", "nosuch"], 2, "expected one of noise_quarter"),
    ],
)
def test_a_mistake_is_two_lines_and_a_code(arguments: list[str], code: int, expected: str, tmp_path: Path) -> None:
    done = fedmed(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_data_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    done = fedmed("run", "pneumonia", "--runs-dir", str(tmp_path), cwd=tmp_path, FEDMED_DATA_DIR=str(tmp_path))
    assert done.returncode == 3
    assert "fedmed data fetch" in done.stderr


def test_a_ca_that_is_not_there_is_told_before_a_run_folder_is_made(tmp_path: Path) -> None:
    done = fedmed("run", "demo", "--superlink", "127.0.0.1:1", "--root-certificates", "nosuch.pem", cwd=tmp_path)
    assert done.returncode == 2 and "nosuch.pem" in done.stderr and "does not exist" in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_says_what_an_argument_is() -> None:
    assert "NAME@ALIAS or NAME:VERSION" in fedmed("serve", "--help").stdout


def test_help_is_quick_to_import() -> None:
    code = "import sys, aggregator.cli; print([name for name in ('torch', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
