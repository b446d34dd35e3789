"""What is added to Flower's programs: a certificate is taken up when it is whole, a token is on no command line."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aggregator.joining import certificates, provision
from aggregator.superlink.hooks import Pair
from aggregator.superlink.superexec import start_without_token


def test_what_the_superlink_imports_is_set_aside_from_the_search_for_cycles() -> None:
    program = "import gc; from aggregator.superlink import main as m; m.flower_superlink = lambda: print(gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", f"{program}; m.main()"], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 50_000


@pytest.fixture
def consortium(tmp_path: Path) -> provision.Consortium:
    return provision.init(tmp_path / "c", ["aggregator.example.org"])


def test_a_renewed_certificate_is_taken_up_once(consortium: provision.Consortium) -> None:
    pair = Pair(consortium.certificate, consortium.key)
    assert pair.changed() == (consortium.certificate.read_bytes(), consortium.key.read_bytes())
    assert pair.changed() is None
    provision.renew(consortium, now=datetime.now(UTC) + timedelta(days=1))
    changed = pair.changed()
    assert changed is not None and changed[0] == consortium.certificate.read_bytes()
    assert pair.changed() is None


def test_files_that_do_not_belong_together_are_left_alone(consortium: provision.Consortium) -> None:
    pair = Pair(consortium.certificate, consortium.key)
    pair.changed()
    old_key, old = consortium.key.read_bytes(), consortium.certificate.read_bytes()
    provision.renew(consortium, new_key=True)
    new = consortium.certificate.read_bytes()
    for half in (old, b"", new[: len(new) // 2]):
        consortium.certificate.write_bytes(half)
        assert pair.changed() is None
    consortium.certificate.unlink()
    assert pair.changed() is None
    consortium.certificate.write_bytes(new)
    assert pair.changed() == (new, consortium.key.read_bytes())
    assert not certificates.belongs(new, old_key)


def test_a_token_is_on_no_command_line(tmp_path: Path) -> None:
    said = tmp_path / "said"
    program = (
        "import sys, pathlib; args = sys.argv[1:]; at = args.index('--token-file')\n"
        "line = pathlib.Path('/proc/self/cmdline').read_text()\n"
        "import os.path; assert os.path.isfile(args[at + 1])\n"
        "token = pathlib.Path(args[at + 1]).read_text()\n"
        f"pathlib.Path({str(said)!r}).write_text(f'{{token}} {{token in line}}')"
    )
    before = len(os.listdir("/proc/self/fd"))
    process = start_without_token([sys.executable, "-c", program, "--a", "b", "--token", "s3cret", "--insecure"])
    assert process.wait(60) == 0
    assert said.read_text() == "s3cret False"
    assert len(os.listdir("/proc/self/fd")) == before
    plain = start_without_token([sys.executable, "-c", "print(1)"], stdout=subprocess.DEVNULL)
    assert plain.wait(60) == 0
