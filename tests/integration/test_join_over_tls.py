"""A hospital joins over TLS with a node key of its own, between two machines (network namespaces), by the lines of
docs/operations.md; and who may not join is refused and named. Needs root for the namespaces: who is not root has none to join."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from aggregator.joining import admitted, provision
from aggregator.superlink.hooks import RELOAD_S
from aggregator.watching.events import read_events
from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.kit import read_kit, write_kit
from fedmed.node_keys import fingerprint, read_public
from tests.helpers_consortium import ROOT, WAIT_S, World
from tests.helpers_netns import AGGREGATOR_NAME, two_machines

ROUNDS = 10  # a quick machine must not be through with them before the new certificate is taken up
SMALL = " ".join(
    [
        "partition.sites=[north] federation.quorum=1 federation.deadline_s=100",
        "data.source=phantom data.train_patients=40 data.test_patients=20 evaluation.max_new_tokens=2",
        f"training.rounds={ROUNDS} training.local_steps=2 privacy.sample_rate=0.2 privacy.noise_multiplier=2.0",
    ]
)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are root's")


def documented() -> list[list[str]]:
    """The lines of each block under `Joining over TLS`: consortium, hospital, consortium, hospital, consortium."""
    section = (ROOT / "docs/operations.md").read_text().partition("### Joining over TLS")[2].partition("\n### ")[0]
    blocks = [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]
    assert [len(block) for block in blocks] == [2, 2, 1, 4, 1]
    return blocks


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """The hospital has joined, as documented; its connection runs as user nobody."""
    root = Path(tempfile.mkdtemp(prefix="fm-"))
    root.chmod(0o755)
    for name in ("lib", "srv", "run", "desk"):
        (root / name).mkdir()
    write_manifest(root / "srv/manifest", phantom_examples(60, 0, domain="hospital", split="train"))
    with two_machines() as machines:
        here = World(machines, root)
        try:
            join(here)
            yield here
        finally:
            for name in [*here.started]:
                here.stop(name)
    shutil.rmtree(root)


def join(world: World) -> None:
    (init, superlink), (create, keygen), (admit,), (put, check, start, connect), _ = documented()
    a, h = world.machines.aggregator, world.machines.hospital
    world.run(a, world.here(init))
    world.start("superlink", world.command(a, world.here(superlink).rstrip(" &")))
    world.run(h, world.here(create))
    settings = world.north / "site.yaml"  # here the socket's group is everybody: user nobody has no group
    settings.write_text(settings.read_text().replace('socket_mode: "0660"', 'socket_mode: "0666"'))
    world.run(h, world.here(keygen))
    shutil.copy(f"{world.north}.connection/node.pub", world.root / "desk/node.pub")
    world.run(a, world.here(admit))
    shutil.copy(world.consortium / "kits/north.tar", world.root / "desk/north.tar")
    world.run(h, world.here(put) + " --user nobody")
    world.wait_until("admitted", "superlink", "site north may join")
    said = world.run(h, world.here(check))
    assert f"{AGGREGATOR_NAME}:9092 lets this site in" in said
    world.start("site", world.command(h, world.here(start).rstrip(" &")))
    assert world.here(connect) == f"fedmed-site connect {world.north}.connection &"
    world.connect()
    world.wait_until("connected", "connect", "connected as node")


def test_a_run_during_which_the_certificate_is_renewed_loses_no_round(world: World) -> None:
    """The old one has 20 days left, which every round says until it is renewed, with a new private key. The connection opens a
    channel for every message, so later rounds shake hands anew."""
    a, h, consortium = world.machines.aggregator, world.machines.hospital, provision.load(world.consortium)
    provision.renew(consortium, now=datetime.now(UTC) - timedelta(days=345))
    assert "ends in 20 days" in world.run(a, f"fedmed provision status {world.consortium}")
    assert "WARN  connection" in world.run(h, f"fedmed-site check {world.north}.connection")
    world.stop("connect")
    world.connect()
    (line,) = documented()[-1]
    runs = world.root / "runs"
    world.start("run", world.command(a, f"{world.here(line)} --runs-dir {runs} {SMALL}"))
    events = runs / "demo/events.jsonl"

    def seen(kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(events) if event["kind"] == kind]

    world.wait(lambda: seen("round_committed"), "a round", "run")
    provision.renew(consortium, new_key=True)
    renewed = time.time() + RELOAD_S
    assert world.started.pop("run").wait(WAIT_S) == 0, world.said("run")
    rounds = seen("round_committed")
    assert [(event["round"], event["skipped"], event["replies"]) for event in rounds] == [
        (number, False, 1) for number in range(1, ROUNDS + 1)
    ]
    assert len([event for event in rounds if event["time"] > renewed]) > 1
    assert "ends on" in world.said("connect")
    warned = {event["round"] for event in seen("warning")}
    assert 1 in warned
    assert ROUNDS not in warned
    assert "round 1: WARNING: the SuperLink's certificate ends in 20 days" in world.said("run")

    budget = json.loads(world.run(h, f"fedmed-site budget {world.north} --json"))
    assert budget["cohorts"][0]["cohort"] == "north"
    assert 0 < budget["cohorts"][0]["spent"] <= 4.0 + 1e-6
    assert "fedmed:1" in world.run(a, f"fedmed registry list --runs-dir {runs}")


def test_a_new_node_key_takes_over_when_it_is_seen(world: World) -> None:
    a, h, folder = world.machines.aggregator, world.machines.hospital, Path(f"{world.north}.connection")
    world.run(h, f"fedmed-site keygen {world.north}")
    world.run(a, f"fedmed provision site {world.consortium} north --public-key {folder}/next.pub")
    register = provision.load(world.consortium).register
    assert [entry.state for entry in register.entries()] == ["valid", "valid"]
    world.run(h, f"fedmed-site join {world.consortium}/kits/north.tar {world.north} --user nobody")
    assert [entry.state for entry in register.entries()] == ["valid", "valid"]
    world.stop("connect")
    world.connect()
    world.wait_until("replaced", "superlink", "a key of site north may not join any more")
    assert [entry.state for entry in register.entries()] == ["replaced", "valid"]
    assert "lets this site in" in world.run(h, f"fedmed-site check {folder}")


def test_no_secret_is_in_a_log_a_command_line_or_mlflow(world: World) -> None:
    """After the run above: what stands in private files stands nowhere else."""
    private = [*world.consortium.glob("*.key"), Path(f"{world.north}.connection/node.key"), world.north / "site.key"]
    assert len(private) == 4
    secrets = [piece for path in private for piece in pieces(path)]
    open_to_read = [*world.root.glob("*.log"), *world.root.rglob("logs/*"), *world.root.rglob("*.jsonl")]
    open_to_read += [*(world.root / "runs").rglob("*.db"), *(world.root / "runs").rglob("*.json")]
    assert len(open_to_read) > 10
    for path in open_to_read:
        content = path.read_bytes()
        assert not [piece for piece in secrets if piece in content], path
    assert any("flwr-serverapp" in line for line in world.seen)
    for line in world.seen:
        assert not re.search(r"--token\s|[0-9a-f]{64}|PRIVATE", line), line


def pieces(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [line for line in content.splitlines() if len(line) > 40] if b"PRIVATE KEY" in content else [content]


def test_a_strangers_key_is_refused_and_named(world: World) -> None:
    h, stranger = world.machines.hospital, world.root / "srv/stranger"
    world.run(h, f"fedmed-site init {stranger} --name north --data {world.root}/srv/manifest")
    world.run(h, f"fedmed-site keygen {stranger}")
    public = Path(f"{stranger}.connection/node.pub")
    mark = fingerprint(read_public(public))
    kit = replace(read_kit(world.consortium / "kits/north.tar"), fingerprint=mark, key=b"", public=public.read_bytes())
    tar = write_kit(world.root / "desk/forged", kit)
    world.run(h, f"fedmed-site join {tar} {stranger}")
    assert f"does not admit the key {mark}" in world.run(h, f"fedmed-site check {stranger}.connection", expected=11)
    world.start("site-stranger", world.command(h, f"fedmed-site start {stranger}"))
    world.start("connect-stranger", world.command(h, f"fedmed-site connect {stranger}.connection"))
    world.wait_until("refused", "connect-stranger", f"does not admit the key {mark}")
    assert world.started["connect-stranger"].poll() is None  # no crash loop: it waits for a person
    audit = [json.loads(line) for line in Path(f"{stranger}.connection/audit.jsonl").read_text().splitlines()]
    assert [mark in line["message"] for line in audit if line["decision"] == "refused"] == [True]
    for name in ("connect-stranger", "site-stranger"):
        world.stop(name)


def test_plain_text_is_refused_on_both_sides(world: World) -> None:
    h, address = world.machines.hospital, f"{AGGREGATOR_NAME}:9092"
    said = world.run(h, f"fedmed-site connect {world.north} --superlink {address}", expected=2)
    assert "expected --root-certificates for TLS" in said
    world.start("plain", world.command(h, f"fedmed-site connect {world.north} --superlink {address} --insecure"))
    world.wait_until("warned", "plain", "WARNING: plain text")
    world.wait_until("refused", "plain", "does not answer")
    assert "connected as node" not in world.said("plain")
    world.stop("plain")


def test_plain_text_beyond_loopback_has_to_be_asked_for_and_is_told(world: World) -> None:
    """Told at the start here; every round is told by the server app, which learns of it from its SuperLink's environment."""
    a, h, trial = (
        world.machines.aggregator,
        world.machines.hospital,
        "--host 10.77.0.1 --fleet-port 9192 --control-port 9193",
    )
    assert "is not a consortium's folder" in world.run(
        a, f"fedmed superlink {world.root}/lib/trial {trial}", expected=11
    )
    world.start("trial", world.command(a, f"fedmed superlink {world.root}/lib/trial {trial} --insecure"))
    world.wait_until("started", "trial", "SuperLink ready: sites connect to 10.77.0.1:9192")
    assert (
        "warning: INSECURE: anybody on the way can read and change what goes to and from 10.77.0.1:9192"
        in world.said("trial")
    )
    below = psutil.Process(world.started["trial"].pid).children(recursive=True)
    assert {process.environ().get(admitted.EXPOSED_KEY) for process in below} == {"10.77.0.1:9192"}
    world.start("open", world.command(h, f"fedmed-site connect {world.north} --superlink 10.77.0.1:9192 --insecure"))
    world.wait_until("joined", "open", "connected as node")
    for name in ("open", "trial"):
        world.stop(name)


@pytest.mark.parametrize(("days", "said"), [(-400, "ended on"), (2, "begins on")])
def test_a_certificate_out_of_its_time_is_named_and_its_renewal_lets_the_site_in(
    world: World, days: int, said: str
) -> None:
    h, consortium = world.machines.hospital, provision.load(world.consortium)
    provision.renew(consortium, now=datetime.now(UTC) + timedelta(days=days))
    check = f"fedmed-site check {world.north}.connection"
    refused = world.run(h, check, expected=11)
    assert said in refused
    assert "clock says" in refused
    world.run(world.machines.aggregator, f"fedmed provision renew {world.consortium}")
    assert "lets this site in" in world.run(h, check)


def test_a_restarted_superlink_lets_its_sites_in_again(world: World) -> None:
    _, superlink = documented()[0]
    before = world.said("connect").count("connected as node")
    world.stop("superlink")
    world.start("superlink", world.command(world.machines.aggregator, world.here(superlink).rstrip(" &")))
    world.wait(lambda: world.said("connect").count("connected as node") > before, "connected again", "connect")


def test_a_revoked_site_is_refused_and_named(world: World) -> None:
    a, h = world.machines.aggregator, world.machines.hospital
    world.run(a, f"fedmed provision revoke {world.consortium} north --reason left")
    world.wait_until("told", "connect", "unknown there, or revoked")
    assert "unknown there, or revoked" in world.run(h, f"fedmed-site check {world.north}.connection", expected=11)
    assert world.started["connect"].poll() is None
    assert json.loads((world.consortium / "nodes.json").read_text()) == {}
    assert "a key of site north may not join any more" in world.said("superlink")
    audit = [json.loads(line) for line in Path(f"{world.north}.connection/audit.jsonl").read_text().splitlines()]
    assert audit[-1]["decision"] == "refused"
    assert "unknown there, or revoked" in audit[-1]["message"]
