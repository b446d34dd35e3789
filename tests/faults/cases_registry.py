"""Faults of the registry: MLflow away, its disk full or read-only, two who promote at the same time."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.faults.case import Facts, case
from tests.faults.cases_rounds import serve, with_daemons
from tests.faults.hospital import error_lines
from tests.faults.lab import Done, Lab, environment, fill, json_lines, must, wait_for
from tests.faults.tracking import Stored, TrackingServer

ROUNDS = 6
ROOM_FOR_SOME_TABLES, ROOM_FOR_A_RUN = 256 << 10, 1 << 20  # of 2 MB of tables; less than the 3 MB of the model


@case(
    25,
    "the MLflow server is killed after round 1 was delivered, and started again when the run has ended",
    "the run ends with status {exit} and all rounds {rounds}, of which {during} or more after the kill; it says once that "
    "MLflow does not answer ({told}) and at the end how to replay ({hint}); when it is back, replay {first}, and a second "
    "one: {second}; {runs} MLflow run, {versions} version, each point of each round once: {once}; {moves} move of champion",
    limit_s=900,
    exit=0,
    rounds=list(range(ROUNDS + 1)),
    during=1,
    told=1,
    hint=True,
    first="sends the rest and the version",
    second="nothing had waited",
    runs=1,
    versions=1,
    once=True,
    moves=1,
)
def mlflow_down(lab: Lab) -> Facts:
    from tests import helpers_runs as runs

    server = TrackingServer(lab).start()
    root = lab.root / "runs"
    root.mkdir()
    folder = root / "hurt"
    with runs.ending_all(root):
        options = [*runs.TWO_SITES, f"training.rounds={ROUNDS}", f"registry.uri={server.uri}"]
        process = runs.start_run(root, "hurt", *options)
        runs.wait_until(lambda: "round/1" in delivered(folder), "round 1 to be delivered", process)
        server.kill()
        before = committed(folder)
        output, _ = process.communicate(timeout=600)
    waiting = [f"round/{number}" for number in committed(folder) if f"round/{number}" not in delivered(folder)]
    server.start()
    first, second = (lab.fedmed("registry", "replay", str(folder)) for _ in range(2))
    stored, words = Stored(server.database), f"{len(waiting)} round{'s' if len(waiting) > 1 else ''} and the version"
    points, text = stored.points(), " ".join(output.split())
    return {
        "exit": process.returncode,
        "rounds": committed(folder),
        "during": min(1, len(committed(folder)) - len(before)),
        "told": text.count(
            "does not answer: [Errno 111] Connection refused; the rounds go on, and are sent to it later"
        ),
        "hint": f"fedmed registry replay {folder}" in text,
        "first": "sends the rest and the version" if words in first.stderr else said(first),
        "second": said(second),
        "runs": stored.runs(),
        "versions": len(stored.models()),
        "once": set(points.values()) == {1}
        and [step for name, step in sorted(points) if name == "test_accuracy"] == list(range(ROUNDS + 1)),
        "moves": len(stored.moves("champion")),
    }


def delivered(folder: Path) -> list[str]:
    """What the run's outbox says MLflow has."""
    return [str(line["delivered"]) for line in json_lines(folder / "outbox.jsonl") if "delivered" in line]


def committed(folder: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in (folder / "rounds").glob("[0-9]*/round.json"))


def said(done: Done) -> str:
    """What a command tells beside its result, in one line; its error where it failed."""
    return error_lines(done) if done.returncode else " ".join(done.stderr.split())


def publish(lab: Lab, runs: Path, name: str, count: int) -> Path:
    """So many small versions in the store under `runs`; returns its database."""
    done = lab.run(sys.executable, "-m", "tests.faults.small_versions", str(runs), name, str(count))
    assert done.returncode == 0, done.stderr
    return runs / "mlflow" / "mlflow.db"


def promoter(lab: Lab, runs: Path, version: int) -> subprocess.Popen[str]:
    """`fedmed registry promote` of a version, as a person of that number."""
    command = [sys.executable, "-m", "aggregator.cli", "registry", "promote", f"fedmed:{version}"]
    command += ["--reason", f"mine is {version}", "--runs-dir", str(runs)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = environment(FEDMED_ACTOR=f"person {version}")
    process = subprocess.Popen(command, text=True, env=env, **pipe)  # type: ignore[call-overload]
    lab.callback(process.kill)
    return process


def ended(process: subprocess.Popen[str]) -> Done:
    """What became of it, once it has ended."""
    output, errors = process.communicate(timeout=300)
    return Done(process.args, process.returncode, output, errors)


def is_at(process: subprocess.Popen[str], lock: Path) -> bool:
    """Whether the process has the lock's file open, and so waits for it or holds it."""
    if process.poll() is not None:
        raise AssertionError(f"ended with {process.returncode} while the lock was held: {process.stderr.read()}")
    return any(path.resolve() == lock for path in Path(f"/proc/{process.pid}/fd").iterdir())


@case(
    26,
    "two people promote two versions in the same moment: both commands are at the lock when it is given free",
    "while it is held neither moves anything ({moved} moves); then both end with status {exit}, each with the line of its own "
    "version: {lines}; {count} moves in the history, numbered {numbers}, the second from where the first went: {chain}, with "
    "both persons and reasons: {audited}; champion is what the last move says: {champion}",
    moved=0,
    exit=[0, 0],
    lines=True,
    count=2,
    numbers=[1, 2],
    chain=True,
    audited=True,
    champion=True,
)
def two_promoters(lab: Lab) -> Facts:
    runs = lab.root / "runs"
    stored = Stored(publish(lab, runs, "fedmed", 2))
    lock = runs / "mlflow" / "mlflow.db.fedmed.lock"
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        processes = [promoter(lab, runs, version) for version in (1, 2)]
        for process in processes:
            wait_for(lambda process=process: is_at(process, lock), "a promoter to be at the lock")
        moved = len(stored.moves("champion")) + len(stored.holder("champion"))
    done = [ended(process) for process in processes]
    moves = stored.moves("champion")
    told = {(move["actor"], move["reason"], move["to_version"]) for move in moves}
    return {
        "moved": moved,
        "exit": [item.returncode for item in done],
        "lines": all(
            f"fedmed:{version} " in item.stdout and "champion" in item.stdout for version, item in enumerate(done, 1)
        ),
        "count": len(moves),
        "numbers": [move["number"] for move in moves],
        "chain": [move["from_version"] for move in moves] == [0, *(move["to_version"] for move in moves[:-1])],
        "audited": told == {(f"person {version}", f"mine is {version}", version) for version in (1, 2)},
        "champion": stored.holder("champion") == [moves[-1]["to_version"]] if moves else False,
    }


@case(
    26,
    "somebody promotes while another holds the lock of the model for longer than a minute",
    "exit {exit}: {says}; {moved} moves; when it is free the same command ends with status {again} and champion is {champion}",
    part="held",
    exit=9,
    says="somebody else is moving an alias of 'fedmed'",
    moved=0,
    again=0,
    champion=[1],
)
def promoter_waits_in_vain(lab: Lab) -> Facts:
    runs = lab.root / "runs"
    stored = Stored(publish(lab, runs, "fedmed", 1))
    with (runs / "mlflow" / "mlflow.db.fedmed.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = ended(promoter(lab, runs, 1))
        moved = len(stored.moves("champion")) + len(stored.holder("champion"))
    again = ended(promoter(lab, runs, 1))
    return {
        "exit": done.returncode,
        "says": error_lines(done),
        "moved": moved,
        "again": again.returncode,
        "champion": stored.holder("champion"),
    }


def finished_run(lab: Lab) -> Path:
    """A run of two rounds with its merged model, which no registry knows of yet."""
    made = with_daemons(lab, rounds=2)
    (made.run / "run.json").write_text(json.dumps({"key": "faults-1", "data_source": "phantom", "notes": []}))
    done = serve(made)
    assert done.returncode == 0, done.stderr
    return made.run


class SmallDisk:
    """The disk of a store, with another model's version on it where it is `used`."""

    def __init__(self, lab: Lab, name: str, *, used: bool) -> None:
        self._lab, self._name = lab, name
        self.root = lab.tmpfs(name, "24m")
        self.database = self.root / "mlflow" / "mlflow.db"
        if used:
            publish(lab, self.root, "other", 1)

    def replay(self, run: Path) -> Done:
        """`fedmed registry replay` of a copy of the run, which is on another disk."""
        folder = self._lab.root / f"run-{self._name}"
        if not folder.exists():
            shutil.copytree(run, folder)
        return self._lab.fedmed("registry", "replay", str(folder), "--uri", f"sqlite:///{self.database}")

    def versions(self) -> str:
        """Of which models it holds versions, a name for each; `none` where there is no database."""
        return " and ".join(Stored(self.database).models()) if self.database.exists() else "none"


def failed(done: Done, disk: SmallDisk) -> str:
    """What a replay that failed as it should says of the disk: two lines, the first names a file of it."""
    lines = done.stderr.splitlines()
    named = len(lines) == 2 and str(disk.root) in lines[0] and "make room" in lines[1]
    if (done.returncode, done.stdout, named) != (9, "", True):
        return f"status {done.returncode}: {done.stderr}"
    return lines[0].rpartition(": ")[2] if "Errno" not in lines[0] else lines[0].partition("] ")[2].partition(":")[0]


THEN = (
    "each time status 9 and two lines that name the file, and say: {says}; versions there: {kept}; with the disk mended "
    "the same command sends what had waited: {sends}; versions: {after}, each point of each round once: {once}"
)
SENT = "3 rounds and the version"


@case(
    19,
    "the disk of the MLflow database is full: while its tables are made, when a run is begun, when the model is copied",
    THEN,
    part="database full",
    says="database or disk is full / database or disk is full / No space left on device",
    kept="none, other, other",
    sends=f"{SENT} / {SENT} / the version",
    after="fedmed, fedmed and other, fedmed and other",
    once=True,
)
def disk_full_at_the_database(lab: Lab) -> Facts:
    run = finished_run(lab)
    disks = [
        SmallDisk(lab, "tables", used=False),
        SmallDisk(lab, "begun", used=True),
        SmallDisk(lab, "copied", used=True),
    ]
    room = [ROOM_FOR_SOME_TABLES, 0, ROOM_FOR_A_RUN]
    ballast = [fill(disk.root, leave=leave) for disk, leave in zip(disks, room, strict=True)]
    return fails_and_goes_through(run, disks, lambda: [path.unlink() for path in ballast])


@case(
    19,
    "the disk of the MLflow database is read-only, without a database and with one",
    THEN,
    part="database read-only",
    says="Read-only file system / attempt to write a readonly database",
    kept="none, other",
    sends=f"{SENT} / {SENT}",
    after="fedmed, fedmed and other",
    once=True,
)
def read_only_disk_at_the_database(lab: Lab) -> Facts:
    run = finished_run(lab)
    disks = [SmallDisk(lab, "fresh", used=False), SmallDisk(lab, "used", used=True)]

    def remount(how: str) -> None:
        for disk in disks:
            must(["mount", "-o", f"remount,{how}", str(disk.root)])

    remount("ro")
    return fails_and_goes_through(run, disks, lambda: remount("rw"))


def fails_and_goes_through(run: Path, disks: list[SmallDisk], mend: Callable[[], object]) -> Facts:
    says = [failed(disk.replay(run), disk) for disk in disks]
    kept = [disk.versions() for disk in disks]
    mend()
    done = [disk.replay(run) for disk in disks]
    return {
        "says": " / ".join(says),
        "kept": ", ".join(kept),
        "sends": " / ".join(said(item).removeprefix("sent what had waited: ") for item in done),
        "after": ", ".join(disk.versions() for disk in disks),
        "once": all(set(Stored(disk.database).points().values()) == {1} for disk in disks),
    }
