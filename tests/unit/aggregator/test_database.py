"""The sqlite database of a registry is made whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from aggregator.registry import open_registry
from aggregator.registry.database import create_database

OPEN = (
    "import sys; from pathlib import Path; from aggregator.registry import open_registry\n"
    "print(open_registry('', Path(sys.argv[1])).versions('fedmed'))"
)
WHOLE = 900_000  # bytes of a database with all tables, about


def opening(runs: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", OPEN, str(runs)], stdout=subprocess.PIPE, text=True)


def bytes_so_far(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("mlflow.db*") if "journal" not in path.name)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_who_is_killed_while_it_makes_the_tables_leaves_no_half_database(tmp_path: Path, share: float) -> None:
    process = opening(tmp_path)
    end = time.monotonic() + 60
    while bytes_so_far(tmp_path / "mlflow") < share * WHOLE:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow" / "mlflow.db").exists()
    assert open_registry("", tmp_path).versions("fedmed") == []
    assert not list((tmp_path / "mlflow").glob("*.part*"))


def test_two_that_begin_at_the_same_time_share_one_database(tmp_path: Path) -> None:
    started = [opening(tmp_path) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in started] == ["[]\n", "[]\n"]
    assert [process.returncode for process in started] == [0, 0]


def test_a_database_that_is_there_stays(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_bytes(b"somebody's")
    create_database(database)
    assert database.read_bytes() == b"somebody's"
    assert list(tmp_path.iterdir()) == [database]
