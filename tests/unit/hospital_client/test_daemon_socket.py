"""The daemon's socket in one process, with a trainer that echoes: sizes, states, and who may listen."""

import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmed.errors import FederationError, ModelError, WireError
from fedmed.messages import Refusal, TrainResult, decode, encode
from fedmed.wire import channel
from hospital_client import process
from hospital_client.audit import Audit
from hospital_client.daemon import BackgroundTrainer, Service, listen
from hospital_client.fakes import (
    BASE_SHA256,
    EchoTrainer,
    example_cohort,
    example_policy,
    example_task,
    journal_files,
    linear_epsilon,
)
from hospital_client.ledger import Ledger
from hospital_client.process import claim_socket, log_to, only_daemon
from hospital_client.results import ResultStore
from hospital_client.site import Site


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="fm") as folder:
        yield Path(folder)


@pytest.fixture
def background() -> BackgroundTrainer:
    return BackgroundTrainer(EchoTrainer)


@pytest.fixture
def socket_path(short: Path, background: BackgroundTrainer) -> Iterator[str]:
    """A served site; its trainer is made when a test starts `background`."""
    files = journal_files(short / "site")
    files.path.parent.mkdir()
    Ledger.create(files)
    policy = example_policy()
    ledger, audit = Ledger(files, linear_epsilon), Audit(short / "audit.jsonl")
    results = ResultStore(short / "results")
    site = Site("north", policy, example_cohort(57), ledger=ledger, audit=audit, results=results, trainer=background)
    path = claim_socket(short / "deeper" / "n.sock")
    server = listen(Service(site, background), path, 0o660)
    yield path
    server.stop(None).wait()
    deadline = time.monotonic() + 30
    while (
        site.progress.training and time.monotonic() < deadline
    ):  # its client has gone; it still writes into the folder
        time.sleep(0.01)
    ledger.close()
    audit.close()


def test_a_frame_of_100_megabytes_goes_through_and_back(socket_path: str, background: BackgroundTrainer) -> None:
    background.start()
    payload = bytes(100 << 20)
    result, returned = decode(channel.handle(socket_path, encode(example_task(), payload), timeout_s=60))
    assert isinstance(result, TrainResult)
    assert returned == payload


def test_status_answers_while_the_base_model_loads(socket_path: str, background: BackgroundTrainer) -> None:
    assert channel.status(socket_path).state == "loading"
    background.start()
    background.made.result(10)
    status = channel.status(socket_path)
    assert (status.state, status.site, status.base_sha256) == ("ready", "north", BASE_SHA256)
    assert (status.num_patients, status.epsilon_spent, status.epsilon_budget) == (60, 0.0, 3.5)


def test_a_base_model_that_cannot_be_loaded_is_carried_to_the_main_thread() -> None:
    def fail() -> EchoTrainer:
        raise ModelError("/srv/models is empty")

    broken = BackgroundTrainer(fail)
    broken.start()
    with pytest.raises(ModelError):
        broken.made.result(10)
    assert broken.trainer is None


def test_the_socket_has_its_mode_and_is_not_taken_from_a_live_daemon(socket_path: str) -> None:
    assert stat.S_IMODE(Path(socket_path).stat().st_mode) == 0o660
    with pytest.raises(FederationError, match="another process listens"):
        claim_socket(Path(socket_path))
    assert channel.status(socket_path).site == "north"


def test_garbage_is_refused_on_the_wire(socket_path: str) -> None:
    for frame in (b"", b"garbage"):
        refusal = decode(channel.handle(socket_path, frame, timeout_s=10))[0]
        assert isinstance(refusal, Refusal)
        assert refusal.code == "wire"


def test_no_answer_in_time_says_so(socket_path: str, background: BackgroundTrainer) -> None:
    with pytest.raises(FederationError, match=r"did not answer within 0\.2 s"):
        channel.handle(socket_path, encode(example_task(), b"x"), timeout_s=0.2)  # its trainer is not made yet
    background.start()
    while not channel.status(
        socket_path
    ).tasks_done:  # it goes on, and keeps the result: not into a folder that is gone
        time.sleep(0.01)


def test_a_stale_socket_is_removed_and_another_file_is_not(short: Path) -> None:
    stale = short / "stale.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(stale))
    assert claim_socket(stale) == str(stale)
    assert not stale.exists()
    (short / "notes.txt").write_text("mine")
    with pytest.raises(FederationError, match="is not a socket"):
        claim_socket(short / "notes.txt")
    assert (short / "notes.txt").exists()


def test_nobody_listening_and_a_path_too_long(short: Path) -> None:
    with pytest.raises(FederationError, match="not running") as caught:
        channel.handle(short / "none.sock", b"x", timeout_s=5)
    assert "fedmed-site start" in caught.value.hint
    with pytest.raises(FederationError, match="at most 100"):
        channel.handle(short / ("x" * 100), b"x", timeout_s=5)


def test_a_daemon_that_was_down_is_found_as_soon_as_it_is_up(short: Path, socket_path: str) -> None:
    path = short / "late.sock"
    with pytest.raises(FederationError):
        channel.status(path)
    path.symlink_to(socket_path)
    assert channel.status(path).site == "north"


def test_frames_above_the_limit_are_refused_without_being_held() -> None:
    piece = bytes(1 << 20)
    with pytest.raises(WireError, match="larger than the limit"):
        channel.join(piece for _ in range(1025))
    assert b"".join(chunk.data for chunk in channel.chunks(piece + b"tail")) == piece + b"tail"


def test_only_one_daemon_in_a_folder(short: Path) -> None:
    with only_daemon(short / "lock"), pytest.raises(FederationError, match=r"process \d+"), only_daemon(short / "lock"):
        pass
    with only_daemon(short / "lock"):
        pass


def test_a_daemon_that_ended_leaves_the_log_as_it_found_it(tmp_path: Path) -> None:
    log = process.log
    before = (log.level, log.propagate, list(log.handlers))
    with log_to(tmp_path / "daemon.log"):
        log.info("begun")
        assert not log.propagate
    log.info("ended")
    assert (log.level, log.propagate, list(log.handlers)) == before
    assert "begun" in (tmp_path / "daemon.log").read_text()
    assert "ended" not in (tmp_path / "daemon.log").read_text()
