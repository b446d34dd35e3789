"""The committed gRPC files are what the committed proto gives, so nobody edits one without the other."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["site_pb2.py", "site_pb2.pyi", "site_pb2_grpc.py"])
def test_regenerating_gives_the_committed_file(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([*command, f"--grpc_python_out={tmp_path}", "fedmed/wire/site.proto"], cwd=ROOT, check=True)
    assert (tmp_path / "fedmed/wire" / name).read_text() == (ROOT / "fedmed/wire" / name).read_text()
