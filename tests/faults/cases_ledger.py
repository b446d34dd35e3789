"""Faults of the ledger and of its daemon: what was reserved stays spent, and whoever cannot be trusted trains nothing."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

from fedmed.messages import Refusal, TrainResult, encode
from tests.faults.case import Facts, case
from tests.faults.hospital import ADAPTER, Hospital, error_lines, hint_of, make_hospital, task
from tests.faults.lab import Lab, wait_for
from tests.faults.tcp_proxy import Proxy


@case(
    3,
    "kill -9 between the ledger's write and the training",
    "{reserved} reserved, {committed} committed, {left} left of the training; epsilon after the restart is that before: "
    "{kept}; the same task again makes reservation {again}",
    quick=True,
    reserved=1,
    committed=0,
    left="begun",
    kept=True,
    again=2,
)
def killed_before_training(lab: Lab) -> Facts:
    site = make_hospital(lab)
    site.hold.touch()
    site.start()
    site.ask_aside(task())
    site.wait_until_training()
    before = site.epsilon()
    site.kill()
    left, (reserved, committed) = " ".join(site.trainings()), site.ledger()
    site.hold.unlink()
    site.start()
    kept = site.epsilon() == before > 0
    assert isinstance(site.ask(task()), TrainResult)
    return {"reserved": reserved, "committed": committed, "left": left, "kept": kept, "again": site.ledger()[0]}


@case(
    4,
    "kill -9 after the training, before the result is sent",
    "the same task is answered by the same bytes: {same}; {trained} training, {reserved} reserved, {committed} committed; "
    "audit: {audit}",
    quick=True,
    same=True,
    trained=1,
    reserved=1,
    committed=1,
    audit="started accepted released started resent",
)
def killed_before_sending(lab: Lab) -> Facts:
    site = make_hospital(lab)
    site.hold.touch()
    site.start()
    between = lab.enter(Proxy(f"unix:{site.socket}", f"unix:{lab.root}/between.sock"))
    thread = site.ask_aside(task(), socket=lab.root / "between.sock")
    site.wait_until_training()
    between.hold("down")  # what the daemon answers goes no further
    site.hold.unlink()
    wait_for(lambda: between.held_bytes > len(ADAPTER), "the answer to be under way")
    stored = next((site.root / "results").glob("*.frame")).read_bytes()
    site.kill()
    between.cut()
    thread.join(60)
    site.start()
    again = site.send(encode(task(), ADAPTER))
    reserved, committed = site.ledger()
    audit, trained = " ".join(site.decisions()), site.trainings().count("begun")
    return {"same": again == stored, "trained": trained, "reserved": reserved, "committed": committed, "audit": audit}


@case(
    5,
    "the same task twice at once, again when it is done, and another one in between",
    "{different} different result of {sent} sent; {trained} training, {reserved} reserved; while it trains, the second waits "
    "for its result: {waits}, and the other task is told to come again: {busy}",
    quick=True,
    different=1,
    sent=3,
    trained=1,
    reserved=1,
    waits=True,
    busy=True,
)
def duplicate_task(lab: Lab) -> Facts:
    site = make_hospital(lab)
    site.hold.touch()
    site.start()
    first = site.ask_aside(task())
    site.wait_until_training()
    second = site.ask_aside(task())
    other = site.ask(task(2))
    second.join(0.5)
    waits = second.is_alive() and not site.answers
    site.hold.unlink()
    for thread in (first, second):
        thread.join(60)
    results = [*(encode(answer, ADAPTER) for answer in site.answers), site.send(encode(task(), ADAPTER))]
    return {
        "different": len(set(results)),
        "sent": len(results),
        "trained": site.trainings().count("begun"),
        "reserved": site.ledger()[0],
        "waits": waits,
        "busy": isinstance(other, Refusal) and other.retry,
    }


def refusal_to_start(site: Hospital) -> tuple[int, str, str]:
    done = site.fails_to_start()
    return done.returncode, error_lines(done), hint_of(done)


def mended(site: Hospital, hint: str) -> int:
    """Runs the command that the hint gives; reservations that the budget then counts from."""
    command = hint.split("`")[1]
    assert command.startswith("cp "), hint
    subprocess.run(shlex.split(command), check=True)
    site.start()
    return site.ledger()[0]


def two_rounds(lab: Lab) -> Hospital:
    """A hospital that has trained two rounds and stopped: a cohort's line, and two of each kind."""
    site = make_hospital(lab).start()
    for number in (1, 2):
        assert isinstance(site.ask(task(number)), TrainResult)
    assert site.stop() == 0
    return site


BROKEN_LEDGER = "start ends with status {exit}: {says}; the command in its hint brings back {reserved} reservations"


@case(
    8,
    "a byte of the ledger is changed",
    BROKEN_LEDGER,
    part="corrupt",
    quick=True,
    exit=5,
    says="ledger.jsonl line 2 was changed, lost or cut off; its witness holds the line whole",
    reserved=2,
)
def ledger_corrupt(lab: Lab) -> Facts:
    site = two_rounds(lab)
    path = site.root / "ledger.jsonl"
    data = bytearray(path.read_bytes())
    data[data.index(b"\n") + 30] ^= 1
    path.write_bytes(data)
    code, says, hint = refusal_to_start(site)
    return {"exit": code, "says": says, "reserved": mended(site, hint)}


@case(
    8,
    "the ledger is cut off in the middle of a line",
    BROKEN_LEDGER,
    part="truncated",
    exit=5,
    says="ledger.jsonl line 4 was changed, lost or cut off; its witness holds the line whole",
    reserved=2,
)
def ledger_truncated(lab: Lab) -> Facts:
    site = two_rounds(lab)
    path = site.root / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    code, says, hint = refusal_to_start(site)
    return {"exit": code, "says": says, "reserved": mended(site, hint)}


@case(
    8,
    "the site's folder is put back from a backup",
    BROKEN_LEDGER,
    part="rolled back",
    exit=5,
    says="ledger.jsonl was put back from a backup: it ends at line 3, its witness has line 5",
    reserved=2,
)
def ledger_rolled_back(lab: Lab) -> Facts:
    site = make_hospital(lab).start()
    assert isinstance(site.ask(task(1)), TrainResult)
    site.stop()
    backup = lab.root / "backup"
    shutil.copytree(site.root, backup)
    site.start()
    assert isinstance(site.ask(task(2)), TrainResult)
    site.stop()
    shutil.rmtree(site.root)
    shutil.copytree(backup, site.root)
    code, says, hint = refusal_to_start(site)
    return {"exit": code, "says": says, "reserved": mended(site, hint)}


@case(
    9,
    "a second daemon on the folder, and one of another folder on the same ledger",
    "status {exit}, names the first one's process: {named}; status {other_exit}: {other}; the first still answers: {alive}",
    quick=True,
    exit=8,
    named=True,
    other_exit=5,
    other="ledger.jsonl is locked: another process writes it",
    alive=True,
)
def two_daemons(lab: Lab) -> Facts:
    site = make_hospital(lab).start()
    assert site.daemon is not None
    code, says, _ = refusal_to_start(site)
    named = says == f"another daemon (process {site.daemon.process.pid}) runs on this folder"
    twin = lab.root / "twin"
    shutil.copytree(site.root, twin, ignore=shutil.ignore_patterns("ledger.jsonl", "daemon.lock"))
    os.link(site.root / "ledger.jsonl", twin / "ledger.jsonl")
    text = (twin / "site.yaml").read_text()
    (twin / "site.yaml").write_text(text.replace(str(site.socket), str(lab.root / "twin.sock")))
    other_exit, other, _ = refusal_to_start(Hospital(lab, twin, lab.root / "twin.sock"))
    alive = isinstance(site.ask(task()), TrainResult)
    return {"exit": code, "named": named, "other_exit": other_exit, "other": other, "alive": alive}
