"""Faults of the run's folder at the consortium: full disk, torn checkpoint, another configuration."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.faults.case import Facts, case
from tests.faults.consortium import Consortium, make_consortium
from tests.faults.hospital import error_lines
from tests.faults.lab import Done, Lab, fill, must, wait_for

NAMES = ["north", "harbour"]


def with_daemons(lab: Lab, rounds: int) -> Consortium:
    made = make_consortium(lab, NAMES, f"training.rounds={rounds}", "federation.quorum=2")
    for hospital in made.hospitals.values():
        hospital.start()
    return made


def command(made: Consortium) -> list[str]:
    sites = [f"{name}={hospital.socket}" for name, hospital in made.hospitals.items()]
    return [sys.executable, "-m", "tests.faults.server_app", str(made.run), *sites]


def serve(made: Consortium) -> Done:
    """Runs the rounds that are missing, to the end."""
    return made.lab.run(*command(made), timeout_s=400)


def committed(made: Consortium) -> int:
    """Rounds on disk, the zero-shot one not counted."""
    return len(list((made.run / "rounds").glob("[0-9]*/round.json"))) - 1


def spent(made: Consortium) -> list[int]:
    """Reservations of each hospital."""
    return [hospital.ledger()[0] for hospital in made.hospitals.values()]


@case(
    19,
    "the consortium's disk is full when a round is committed",
    "exit {exit}: {says}; {rounds} round on disk; with room it goes on: exit {again}, {all} rounds; the sites sent round 2 "
    "again and have reserved {spent}",
    part="checkpoint",
    exit=8,
    says="round 2 cannot be written",
    rounds=1,
    again=0,
    all=3,
    spent=[3, 3],
)
def disk_full_at_the_checkpoint(lab: Lab) -> Facts:
    made = with_daemons(lab, rounds=3)
    disk = made.run / "rounds"
    disk.mkdir()
    must(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)])
    lab.callback(must, ["umount", "--lazy", str(disk)])
    slow = made.hospitals["harbour"]
    slow.hold.write_text("2")
    process = lab.start("server", command(made))
    made.wait("round_committed", round=1)
    wait_for(lambda: slow.decisions().count("accepted") == 2, "round 2 to be trained")
    ballast = fill(disk)
    slow.hold.unlink()
    code = process.process.wait(400)
    text = next(line for line in process.log.read_text().splitlines() if line.startswith("error: "))
    says, rounds = "round 2 cannot be written" if "round 2 cannot be written" in text else text, committed(made)
    ballast.unlink()
    again = serve(made).returncode
    resent = all("resent" in hospital.decisions() for hospital in made.hospitals.values())
    return {
        "exit": code,
        "says": says,
        "rounds": rounds,
        "again": again,
        "all": committed(made),
        "spent": spent(made) if resent else "not sent again",
    }


@case(
    21,
    "the newest checkpoint is torn: its adapter is cut in half",
    "exit {exit}; the round before loads and round 2 is made anew: {anew}; {rounds} rounds on disk, the torn one beside "
    "them: {kept}; the sites sent their results again and have reserved {spent}",
    exit=0,
    anew=True,
    rounds=2,
    kept=True,
    spent=[2, 2],
)
def torn_checkpoint(lab: Lab) -> Facts:
    made = with_daemons(lab, rounds=2)
    first = serve(made)
    assert first.returncode == 0, first.stderr
    adapter = made.run / "rounds" / "002" / "adapter.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[: len(whole) // 2])
    code = serve(made).returncode
    return {
        "exit": code,
        "anew": adapter.read_bytes() == whole,
        "rounds": committed(made),
        "kept": bool(list((made.run / "rounds").glob(".broken-002-*"))),
        "spent": spent(made),
    }


@case(
    27,
    "a run's folder is taken up with another configuration, and one whose base model has another hash",
    "exit {exit}: {says}; exit {base_exit}: {base_says}; sites asked: {asked}",
    part="consortium",
    exit=8,
    says="holds rounds of the configuration",
    base_exit=4,
    base_says="expected " + "0" * 64,
    asked=0,
)
def other_configuration(lab: Lab) -> Facts:
    made = with_daemons(lab, rounds=1)
    assert serve(made).returncode == 0
    before = asked(made)
    first = change(made, "training", {"learning_rate": 0.5})
    made.run.joinpath("rounds").rename(made.run / "gone")
    second = change(made, "base_model", {"sha256": "0" * 64})
    return {
        "exit": first.returncode,
        "says": part_of("holds rounds of the configuration", first),
        "base_exit": second.returncode,
        "base_says": part_of("expected " + "0" * 64, second),
        "asked": asked(made) - before,
    }


def asked(made: Consortium) -> int:
    return sum(len(hospital.decisions()) for hospital in made.hospitals.values())


def change(made: Consortium, group: str, keys: dict[str, object]) -> Done:
    """The run with other keys of its configuration."""
    path: Path = made.run / "experiment.json"
    plain = json.loads(path.read_text())
    plain[group].update(keys)
    path.write_text(json.dumps(plain))
    return serve(made)


def part_of(words: str, done: Done) -> str:
    text = error_lines(done)
    return words if words in text else text
