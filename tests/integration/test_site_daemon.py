"""The real daemon: `python -m hospital_client.cli start` as a process, spoken to over its socket."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.errors import FederationError
from fedmed.messages import DescribeTask, Refusal, SiteInfo, TrainResult, TrainTask, decode, encode
from fedmed.models.adapter import adapter_state, add_adapter, decode_state, encode_state, state_sha256
from fedmed.models.base import load_base
from fedmed.models.checkpoint import checkpoint_sha256
from fedmed.models.tiny import build_model, build_processor, save
from fedmed.wire import channel
from hospital_client.fakes import example_task
from hospital_client.ledger import Ledger
from hospital_client.settings import load_site
from hospital_client.setup import create_site

TARGETS: dict[str, Any] = {"parts": ("projector",), "rank": 4}
STARTED: list[subprocess.Popen[str]] = []
CLI = [sys.executable, "-m", "hospital_client.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


@dataclass
class Daemon:
    process: subprocess.Popen[str]
    root: Path
    socket: str

    def ask(self, task: TrainTask | DescribeTask, payload: bytes = b"") -> tuple[Any, bytes]:
        message, returned = decode(channel.handle(self.socket, encode(task, payload), timeout_s=300))
        return message, bytes(returned)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@dataclass
class Place:
    """A short folder with a random tiny base model and a site of 30 phantom patients."""

    root: Path
    adapter: bytes
    frozen_sha256: str
    base_sha256: str

    def make_site(self, name: str, **policy: str) -> Path:
        site = {"name": name, "cohort": name, "data": "../data", "socket": f"../{name}.sock"}
        site["base_models"] = f"{{fedmed-tiny: {self.root / 'base'}}}"
        create_site(self.root / name, site, policy)
        return self.root / name

    def task(self, **changes: Any) -> TrainTask:
        return example_task(**{"base_sha256": self.base_sha256, "steps": 2, **TARGETS, **changes})


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="fm") as folder:
        root = Path(folder)
        root.chmod(0o755)
        processor = build_processor(["yes no two left right pneumonia normal"] * 4)
        save(build_model(len(processor.tokenizer), seed=0), processor, root / "base")
        write_manifest(root / "data", phantom_examples(30, 0, domain="hospital", split="train"))
        adapted = add_adapter(load_base(str(root / "base")).model, example_task(**TARGETS).lora, seed=0)
        adapter = encode_state(adapter_state(adapted), "float32")
        frozen = state_sha256(adapter_state(adapted, ("lora_A",)))
        try:
            yield Place(root, adapter, frozen, checkpoint_sha256(root / "base"))
        finally:  # what a failed test left running
            for process in STARTED:
                process.kill()
                process.wait()


def start(root: Path) -> Daemon:
    """Starts a daemon and waits until it says that it is ready."""
    process = subprocess.Popen([*CLI, "start", str(root)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    STARTED.append(process)
    assert process.stdout is not None
    words = process.stdout.readline().split()
    assert words[:3] == ["fedmed-site", root.name, "ready"], (words, process.wait(5))
    return Daemon(process, root, words[3])


@pytest.fixture(scope="module")
def daemon(place: Place) -> Iterator[Daemon]:
    daemon = start(place.make_site("north", epsilon_budget="8.0"))
    yield daemon
    assert daemon.end(signal.SIGTERM) == 0
    assert not Path(daemon.socket).exists()


def wait_until_training(daemon: Daemon) -> None:
    """Until the task is accepted: its reservation is on disk and its training begins."""
    deadline = time.monotonic() + 120
    while '"accepted"' not in (daemon.root / "audit.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert channel.status(daemon.socket, 60).state == "training"


def send_long_task(daemon: Daemon, place: Place) -> list[Any]:
    """Sends a task of minutes from a thread; the list gets its answer, or the error."""
    answers: list[Any] = []

    def send() -> None:
        try:
            answers.append(daemon.ask(place.task(steps=20_000, noise_multiplier=50.0), place.adapter)[0])
        except FederationError as error:  # killed
            answers.append(error)

    Thread(target=send, daemon=True).start()
    wait_until_training(daemon)
    return answers


def reservations(root: Path) -> tuple[int, int]:
    folder = load_site(root)
    entries = Ledger.read(folder.ledger)
    return len(entries.reservations), len(entries.committed)


def test_it_describes_itself_trains_and_answers_the_same_task_again(place: Place, daemon: Daemon) -> None:
    info, _ = daemon.ask(DescribeTask("run-1"))
    assert isinstance(info, SiteInfo)
    assert info.num_patients == 0  # not told: the policy that `init` writes
    task = place.task(run="trains")
    result, payload = daemon.ask(task, place.adapter)
    assert isinstance(result, TrainResult), result
    assert 0 < result.epsilon <= result.epsilon_total < 8.0
    before, after = decode_state(place.adapter), decode_state(payload)
    assert before.keys() == after.keys()
    assert all(not before[key].equal(after[key]) for key in after)
    again, payload_again = daemon.ask(task, place.adapter)
    assert (again, payload_again) == (result, payload)
    other, payload_other = daemon.ask(place.task(run="trains", round=2), place.adapter)
    assert isinstance(other, TrainResult)
    assert payload_other != payload  # fresh draws and noise


def test_ffa_trains_b_alone_and_compares_the_frozen_a(place: Place, daemon: Daemon) -> None:
    state = decode_state(place.adapter)
    half = encode_state({key: value for key, value in state.items() if "lora_B" in key}, "float32")
    task = place.task(
        run="ffa", method="ffa_lora", trainable=("lora_B",), returned=("lora_B",), frozen_sha256=place.frozen_sha256
    )
    result, payload = daemon.ask(task, half)
    assert isinstance(result, TrainResult), result
    assert all("lora_B" in key for key in decode_state(payload))
    for frozen in ("00" * 32, ""):
        refusal, _ = daemon.ask(
            place.task(run="ffa", round=2, trainable=("lora_B",), returned=("lora_B",), frozen_sha256=frozen), half
        )
        assert isinstance(refusal, Refusal)
        assert refusal.code == "model"


def test_bad_tasks_are_refused_spend_nothing_and_name_no_path(place: Place, daemon: Daemon) -> None:
    spent = channel.status(daemon.socket).epsilon_spent
    nan = {key: value * math.nan for key, value in decode_state(place.adapter).items()}
    bad: list[tuple[str, TrainTask, bytes]] = [
        ("policy", place.task(base_sha256="00" * 32), place.adapter),
        ("policy", place.task(noise_multiplier=0.1), place.adapter),
        ("policy", place.task(mode="none"), place.adapter),
        ("wire", place.task(), b"not safetensors"),
        ("model", place.task(rank=8), place.adapter),
        ("model", place.task(parts=("vision_tower",)), place.adapter),
        ("model", place.task(targets=("no_such_layer",)), place.adapter),
        ("model", place.task(), encode_state(nan, "float32")),
        ("budget_exhausted", place.task(steps=200, noise_multiplier=0.5, sample_rate=0.5), place.adapter),
    ]
    for code, task, payload in bad:
        refusal, _ = daemon.ask(task, payload)
        assert isinstance(refusal, Refusal)
        assert (refusal.code, refusal.retry) == (code, False), refusal.message
        assert str(place.root) not in refusal.message
    assert channel.status(daemon.socket).epsilon_spent == spent


def test_a_second_daemon_on_the_folder_exits_with_a_clear_error(daemon: Daemon) -> None:
    second = subprocess.run([*CLI, "start", str(daemon.root)], capture_output=True, text=True, env=ENVIRONMENT)
    assert second.returncode > 0
    assert f"error: another daemon (process {daemon.process.pid}) runs on this folder" in second.stderr
    assert "Traceback" not in second.stderr


def test_status_and_budget_beside_the_running_daemon(daemon: Daemon) -> None:
    def shown(command: str) -> Any:
        done = subprocess.run([*CLI, command, str(daemon.root), "--json"], capture_output=True, env=ENVIRONMENT)
        return json.loads(done.stdout)

    assert shown("status")["state"] == "ready"
    assert shown("budget")["cohorts"][0]["cohort"] == "north"


def test_logs_and_audit_hold_no_patient_field(place: Place, daemon: Daemon) -> None:
    lines = (place.root / "data/manifest.jsonl").read_text().splitlines()
    patients = {json.loads(line)["patient"] for line in lines}
    questions = {json.loads(line)["question"] for line in lines}
    daemon.ask(place.task(run="logged"), place.adapter)
    for name in ("daemon.log", "audit.jsonl", "ledger.jsonl", "../north.witness/ledger.jsonl"):
        text = (daemon.root / name).read_text()
        assert text
        assert not [item for item in patients | questions if item in text.split() or (" " in item and item in text)]


def test_killed_while_training_the_reservation_stays_spent(place: Place) -> None:
    root = place.make_site("killed", max_local_steps="100000")
    first = start(root)
    send_long_task(first, place)
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert Path(first.socket).exists()  # stale: the next start removes it
    second = start(root)
    assert reservations(root) == (1, 0)
    assert channel.status(second.socket).epsilon_spent > 0
    result, _ = second.ask(place.task(round=2), place.adapter)
    assert isinstance(result, TrainResult)
    assert reservations(root) == (2, 1)
    assert second.end(signal.SIGINT) == 0


def test_sigterm_while_training_ends_in_time_with_a_refusal(place: Place) -> None:
    root = place.make_site("stopped", max_local_steps="100000")
    daemon = start(root)
    answers = send_long_task(daemon, place)
    busy, _ = daemon.ask(place.task(round=2), place.adapter)
    assert isinstance(busy, Refusal)
    assert busy.retry
    began = time.monotonic()
    assert daemon.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 20  # STOP_S, and the exit of a process on a busy machine
    assert isinstance(answers[0], Refusal)
    assert answers[0].retry
    assert reservations(root) == (1, 0)
    audit = [json.loads(line)["decision"] for line in (root / "audit.jsonl").read_text().splitlines()]
    assert audit == ["started", "accepted", "refused", "refused", "stopped"]


AS_NOBODY = """
import os, sys
from fedmed.errors import FederationError
from fedmed.messages import DescribeTask, decode, encode
from fedmed.wire import channel
socket, *private = sys.argv[1:]
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path in private:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path).close()
    except PermissionError:
        continue
    sys.exit(f"user nobody could read {path}")
print(type(decode(channel.handle(socket, encode(DescribeTask("run-1")), timeout_s=30))[0]).__name__)
"""


def test_another_user_reaches_the_socket_and_none_of_the_data(place: Place) -> None:
    """What the relay is in production. Only root can become another user; others see the modes that make it so."""
    root = place.make_site("closed")
    settings = (root / "site.yaml").read_text().replace('socket_mode: "0660"', 'socket_mode: "0666"')
    (root / "site.yaml").write_text(settings)
    data = place.root / "data"
    private = [
        root,
        root.with_name("closed.witness"),
        root / "site.key",
        root / "ledger.jsonl",
        data,
        data / "manifest.jsonl",
        data / "images",
    ]
    assert all(path.stat().st_mode & 0o077 == 0 for path in private)
    if os.geteuid() != 0:
        return
    daemon = start(root)
    command = [sys.executable, "-c", AS_NOBODY, daemon.socket, *map(str, private)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.stdout.strip(), done.returncode) == ("SiteInfo", 0), done.stderr
    assert daemon.end(signal.SIGTERM) == 0
