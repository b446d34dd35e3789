"""Two people promote at the same time: one after the other, and both moves are in the history."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aggregator.registry import MemoryRegistry, RunInfo, open_registry, promote, read_history
from aggregator.registry.exclusive import claimed, locked_file
from aggregator.registry.model_folder import write_manifest
from fedmed.errors import RegistryError


def publish(registry: object, folder: Path, name: str, key: str) -> str:
    model = folder / key
    model.mkdir()
    (model / "config.json").write_text("{}")
    write_manifest(model, {"run": key})
    return registry.publish(model, RunInfo(name=name, key=key, run_name=key)).reference  # type: ignore[attr-defined]


@pytest.mark.parametrize("store", ["file", "claim"])
def test_one_at_a_time(tmp_path: Path, store: str) -> None:
    inside, most, tag = [0], [0], [""]

    def turn() -> None:
        if store == "file":
            block = locked_file(tmp_path / "lock", "fedmed")
        else:
            block = claimed("fedmed", lambda: tag[0], lambda text: tag.__setitem__(0, text), settle_s=0.05)
        with block:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1

    threads = [threading.Thread(target=turn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] and inside == [0] and tag == [""]


def test_a_lock_that_is_taken_and_one_that_cannot_be_made_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "mlflow" / "lock"
    again = locked_file(path, "fedmed", wait_s=0.1)
    with (
        locked_file(path, "fedmed"),
        pytest.raises(RegistryError, match="somebody else is moving an alias of 'fedmed'"),
        again,
    ):
        pass
    path.unlink()
    path.mkdir()
    with pytest.raises(RegistryError, match="lock cannot be opened: Is a directory"), locked_file(path, "fedmed"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(RegistryError, match="file cannot be made"), locked_file(tmp_path / "file" / "lock", "fedmed"):
        pass


def test_a_claim_that_stands_is_waited_for_and_one_of_the_dead_is_not() -> None:
    tag = [f"{time.time():.3f} other"]

    def write(text: str) -> None:
        tag[0] = text

    waits = claimed("fedmed", lambda: tag[0], write, wait_s=0.2, settle_s=0.05)
    with pytest.raises(RegistryError, match="somebody else is moving an alias of 'fedmed'"), waits:
        pass
    tag[0] = f"{time.time() - 100:.3f} other"
    with claimed("fedmed", lambda: tag[0], write, settle_s=0.05):
        assert "other" not in tag[0]
    assert tag == [""]


def test_a_decision_and_its_moves_are_one_turn(tmp_path: Path) -> None:
    registry = MemoryRegistry()
    reference = publish(registry, tmp_path, "fedmed", "k1")
    with registry.exclusive("fedmed"):
        promote(registry, reference)


def test_two_promoters_as_processes(tmp_path: Path) -> None:
    """Both try to make their version champion in the same moment, many times over; no move is lost and they form a chain."""
    registry = open_registry("", tmp_path)
    references = [publish(registry, tmp_path, "fedmed", key) for key in ("k1", "k2")]
    script = (
        "import sys; from pathlib import Path\n"
        "from aggregator.registry import open_registry, promote\n"
        "from fedmed.errors import RegistryError\n"
        "registry, moved = open_registry('', Path(sys.argv[1])), 0\n"
        "registry.versions('fedmed'); print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(5):\n"
        "    try: promote(registry, sys.argv[2], 'champion', 'mine', actor=sys.argv[2]); moved += 1\n"
        "    except RegistryError as error: assert 'already' in error.message, error.message\n"
        "print(moved)\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), reference],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for reference in references
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    moved = [int(process.communicate("go\n", timeout=240)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    history = read_history(registry.versions("fedmed"), "champion")
    assert len(history) == sum(moved) and min(moved) >= 1
    assert [change.number for change in history] == list(range(1, len(history) + 1))
    chain = [0, *(change.to_version for change in history)]
    assert [change.from_version for change in history] == chain[:-1]
    assert registry.get("fedmed@champion").version == chain[-1]
