"""The federation as real processes on loopback gRPC: SuperLink, SuperNodes, relays and the real ServerApp; only the site
daemons are stand-ins that answer at once. One of them is killed in the middle of a round, then its SuperNode goes too."""

import json
import os
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path

import psutil
import pytest
from flwr.cli.build import build_fab_from_disk

from aggregator.rounds.store import RoundStore
from aggregator.runs.processes import Managed, ProcessGroup
from aggregator.superlink.flower_runs import BUNDLE, follow, submit
from aggregator.superlink.launcher import start_superlink, start_supernode
from aggregator.watching.events import EventReader, read_events
from fedmed.config import load_experiment, to_dict
from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.errors import FederationError
from fedmed.models.base import BaseModel

SITES = ("north", "harbour", "valley")
DEADLINE_S = 120  # nothing here waits for it; a machine under load must not reach it


def test_the_bundle_ships_two_names_and_nothing_that_trains():
    bundle = build_fab_from_disk(BUNDLE)
    with zipfile.ZipFile(BytesIO(bundle)) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    assert sorted(files) == [
        ".info/CONTENT",
        "fedmed_bundle/__init__.py",
        "fedmed_bundle/client.py",
        "fedmed_bundle/server.py",
        "pyproject.toml",
    ]
    assert len(bundle) < 10_000
    client = [line for line in files["fedmed_bundle/client.py"].splitlines() if line and not line.startswith('"""')]
    assert client == ["from hospital_client.app import app as relay", "app = relay"]


@pytest.fixture
def run_dir(tmp_path: Path, tiny_base: BaseModel) -> Path:
    """A run's folder with a random base model and four public phantoms."""
    tiny_base.model.save_pretrained(tmp_path / "base")
    tiny_base.processor.save_pretrained(tmp_path / "base")
    folder = tmp_path / "run"
    folder.mkdir()
    experiment = load_experiment(
        "demo",
        [
            f"base_model.name={tmp_path / 'base'}",
            f"partition.sites=[{','.join(SITES)}]",
            f"federation.deadline_s={DEADLINE_S}",
            "federation.quorum=2",
            "privacy.noise_multiplier=1.0",
            "training.rounds=3",
            "evaluation.max_new_tokens=1",
            "device=cpu",
        ],
    )
    (folder / "experiment.json").write_text(json.dumps(to_dict(experiment)))
    write_manifest(folder / "public", phantom_examples(4, 0, domain="public", split="test"))
    return folder


@pytest.fixture
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


def start_fake(group: ProcessGroup, sockets: Path, site: str, *options: str) -> Managed:
    command = [sys.executable, "-m", "fedmed.wire.fake_site", site, str(sockets / site), *options]
    return group.start(f"site-{site}", command, {**os.environ, "PYTHONPATH": os.getcwd()}, essential=False)


def libraries_of_running_relays() -> list[str]:
    """The memory maps of each relay process that has come far enough to hold gRPC."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("flwr-clientapp" in word for word in process.cmdline()):
                maps = Path(f"/proc/{process.pid}/maps").read_text()
                found += [maps] if "cygrpc" in maps else []
        except (psutil.Error, OSError):
            continue
    return found


def runs(process: psutil.Process) -> bool:
    """Whether it still does anything: one that has ended may wait, as a zombie, for whoever adopted it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_training(fake: Managed, times: int) -> None:
    end = time.monotonic() + 60.0
    while fake.log.read_text().count("got train") < times:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_site_dies_in_the_middle_of_a_round_and_the_others_go_on(run_dir: Path, sockets: Path):
    maps: list[str] = []
    flower = run_dir / "flower"
    with ProcessGroup(run_dir / "logs") as group:
        fakes = {site: start_fake(group, sockets, site, "--shift", "0.001", "--delay", "1.0") for site in SITES}
        superlink = start_superlink(group, flower)
        nodes = {site: start_supernode(group, site, superlink.fleet, sockets / site, flower) for site in SITES}
        run = submit(superlink.control, run_dir, flower)
        for event in follow(run, EventReader(run_dir / "events.jsonl"), group):
            if event["kind"] == "round_started" and event["round"] == 1:
                wait_until_training(fakes["valley"], 1)
                maps += libraries_of_running_relays()
            if event["kind"] == "round_started" and event["round"] == 2:
                wait_until_training(fakes["valley"], 2)
                fakes["valley"].process.kill()
            if event["kind"] == "round_started" and event["round"] == 3:
                group.stop(nodes["valley"])
        descendants = psutil.Process().children(recursive=True)
    assert event["kind"] == "finished", event
    assert not [process for process in descendants if runs(process)]

    zero, one, two, three = RoundStore(run_dir / "rounds").records()
    assert zero.scores is not None
    assert sorted(report.site for report in one.replies) == sorted(SITES)
    assert one.left_out == {}
    for record in (two, three):
        assert [report.site for report in record.replies] == ["harbour", "north"]
        assert not record.skipped
    assert two.left_out["valley"].startswith("refused (federation): the site daemon")
    assert str(sockets) not in two.left_out["valley"]
    assert list(three.left_out) == ["valley"]
    left_out = [event for event in read_events(run_dir / "events.jsonl") if event["kind"] == "left_out"]
    assert {event["site"] for event in left_out} == {"valley"}

    assert maps
    assert not [text for text in maps if "libtorch" in text]


def test_an_adapter_of_100_mb_passes_unchanged(tmp_path: Path, sockets: Path):
    flower = tmp_path / "flower"
    with ProcessGroup(tmp_path / "logs") as group:
        start_fake(group, sockets, "north", "--delay", "0")
        superlink = start_superlink(group, flower)
        start_supernode(group, "north", superlink.fleet, sockets / "north", flower)
        run = submit(superlink.control, tmp_path, flower, bundle=Path(__file__).parent / "big-frame")
        list(follow(run, EventReader(tmp_path / "events.jsonl"), group))
    found = json.loads((tmp_path / "found.json").read_text())
    print("seconds of small exchanges, then of 100 MB:", found["seconds"])
    assert found["type"] == "train_result"
    assert found["same"]
    assert found["bytes"] > 100_000_000


def test_a_server_app_that_cannot_start_says_why(run_dir: Path):
    (run_dir / "experiment.json").write_text("{}")
    with ProcessGroup(run_dir / "logs") as group:
        superlink = start_superlink(group, run_dir / "flower")
        run = submit(superlink.control, run_dir, run_dir / "flower")
        last = list(follow(run, EventReader(run_dir / "events.jsonl"), group))[-1]
        assert last["kind"] == "failed"
        assert "problems in the configuration" in last["message"]


def test_a_killed_superlink_is_noticed(run_dir: Path):
    with ProcessGroup(run_dir / "logs") as group:
        superlink = start_superlink(group, run_dir / "flower")
        run = submit(superlink.control, run_dir, run_dir / "flower")
        stream = follow(run, EventReader(run_dir / "events.jsonl"), group)
        assert next(stream)["kind"] in ("zero_shot", "waiting")
        (server,) = [p for p in psutil.Process().children() if "aggregator.superlink.main" in p.cmdline()]
        server.kill()
        begin = time.monotonic()
        with pytest.raises(FederationError, match=r"superlink ended with status -9"):
            list(stream)
        assert time.monotonic() - begin < 10.0
