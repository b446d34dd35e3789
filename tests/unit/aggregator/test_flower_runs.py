"""What is said when Flower's command line gives no answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.superlink import flower_runs
from fedmed.errors import FederationError


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo Traceback >&2; echo \"ModuleNotFoundError: No module named 'x'\" >&2; exit 1",
            "ModuleNotFoundError: .* 'x'",
        ),
        ("exit 3", "exit code 3"),
        ('echo \'{"success": false, "error-message": "no such run"}\'', "no such run"),
        ("exec sleep 20", "no answer within 0.2 s"),
    ],
)
def test_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str) -> None:
    program = tmp_path / "flwr"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(flower_runs, "executable", lambda name: str(program))
    if "sleep" in script:
        monkeypatch.setattr(flower_runs, "START_TIMEOUT_S", 0.2)
    with pytest.raises(FederationError, match=f"`flwr list` failed: .*{words}"):
        flower_runs._flwr({"PATH": "/usr/bin:/bin"}, "list")
