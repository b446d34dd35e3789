"""Faults of disks: full, read-only, slow, torn. What was on disk stays whole, nothing is trained that is not reserved."""

from __future__ import annotations

import time

from fedmed.messages import Refusal, TrainResult
from tests.faults.case import Facts, case
from tests.faults.hospital import Hospital, make_hospital, task
from tests.faults.lab import Lab, fill, freeze, thaw, turn_read_only, turn_writable, wait_for

PAGE = 4096


def fill_up_to_the_next_line(site: Hospital) -> int:
    """Trains rounds until the ledger's next reservation needs a new page of its disk; returns how many."""
    number = 0
    while True:
        lines = (site.root / "ledger.jsonl").read_bytes().splitlines(keepends=True)
        shortest = min((len(line) for line in lines if b'"kind":"reserve"' in line), default=0)
        if PAGE - sum(map(len, lines)) % PAGE < shortest:
            return number
        number += 1
        answer = site.ask(task(number, noise_multiplier=50.0))
        assert isinstance(answer, TrainResult), answer


def code_of(answer: object) -> str:
    return answer.code if isinstance(answer, Refusal) else type(answer).__name__


@case(
    19,
    "the site's disk is full when the ledger is written",
    "refused ({code}); {after} lines as before it, all of them whole; {trained} trained; with room and a new start the "
    "same task gives a {again} and the ledger has {more} reservation more",
    part="ledger",
    quick=True,
    code="ledger",
    after="as many",
    trained=0,
    again="TrainResult",
    more=1,
)
def disk_full_at_the_ledger(lab: Lab) -> Facts:
    disk = lab.tmpfs("disk", "256k")
    site = make_hospital(lab, within=disk).start()
    before = fill_up_to_the_next_line(site)
    ballast = fill(disk)
    code = code_of(site.ask(task(before + 1)))
    whole = (site.root / "ledger.jsonl").read_bytes().endswith(b"\n")
    after, trained = site.ledger()[0], site.trainings().count("begun") - before
    ballast.unlink()
    site.stop()
    again = site.start().ask(task(before + 1))
    return {
        "code": code,
        "after": "as many" if after == before and whole else after,
        "trained": trained,
        "again": code_of(again),
        "more": site.ledger()[0] - before,
    }


@case(
    19,
    "the disk of the ledger's witness is full",
    "refused ({code}); {trained} trained; what only the ledger holds counts as spent: {reserved} reserved",
    part="witness",
    quick=True,
    code="ledger",
    trained=0,
    reserved="one more",
)
def disk_full_at_the_witness(lab: Lab) -> Facts:
    disk = lab.tmpfs("disk", "64k")
    site = make_hospital(lab, witness=disk / "witness").start()
    before = fill_up_to_the_next_line(site)
    ballast = fill(disk)
    code = code_of(site.ask(task(before + 1)))
    trained = site.trainings().count("begun") - before
    ballast.unlink()
    site.stop()
    site.start()
    reserved = site.ledger()[0] - before
    return {"code": code, "trained": trained, "reserved": "one more" if reserved == 1 else reserved}


@case(
    19,
    "the site's disk is full when the result is stored",
    "refused ({code}); {reserved} reserved and {committed} committed: it stays spent; with room the same task gives a "
    "{again} of a second reservation: {twice}",
    part="result",
    quick=True,
    code="failed",
    reserved=1,
    committed=0,
    again="TrainResult",
    twice=True,
)
def disk_full_at_the_result(lab: Lab) -> Facts:
    disk = lab.tmpfs("disk", "256k")
    site = make_hospital(lab, within=disk)
    site.hold.touch()
    site.start()
    thread = site.ask_aside(task())
    site.wait_until_training()
    ballast = fill(disk)
    site.hold.unlink()
    thread.join(60)
    reserved, committed = site.ledger()
    ballast.unlink()
    again = site.ask(task())
    return {
        "code": code_of(site.answers[0]),
        "reserved": reserved,
        "committed": committed,
        "again": code_of(again),
        "twice": site.ledger()[0] == 2,
    }


@case(
    20,
    "the site's file system turns read-only while a round trains",
    "refused ({code}), nothing left; a further task: {next}; mounted anew, {reserved} reserved and {committed} committed, "
    "and the same task gives a {again}",
    part="read-only",
    quick=True,
    code="failed",
    next="ledger",
    reserved=1,
    committed=0,
    again="TrainResult",
)
def read_only(lab: Lab) -> Facts:
    disk = lab.ext4("disk", 8)
    site = make_hospital(lab, within=disk)
    site.hold.touch()
    site.start()
    thread = site.ask_aside(task())
    site.wait_until_training()
    turn_read_only(disk)
    site.hold.unlink()
    thread.join(60)
    further = code_of(site.ask(task(2)))
    site.kill()
    turn_writable(disk)
    reserved, committed = site.start().ledger()
    again = code_of(site.ask(task()))
    return {
        "code": code_of(site.answers[0]),
        "next": further,
        "reserved": reserved,
        "committed": committed,
        "again": again,
    }


@case(
    20,
    "the site's disk takes no write for three seconds",
    "the task waits ({waited}) and then gives a {answer}; {reserved} reserved, {committed} committed; trained while the "
    "disk hung: {trained}",
    part="slow",
    quick=True,
    waited=True,
    answer="TrainResult",
    reserved=1,
    committed=1,
    trained=0,
)
def slow_disk(lab: Lab) -> Facts:
    disk = lab.ext4("disk", 8)
    site = make_hospital(lab, within=disk).start()
    freeze(disk)
    begin = time.monotonic()
    thread = site.ask_aside(task())
    time.sleep(3.0)
    trained, waited = site.trainings().count("begun"), not site.answers
    thaw(disk)
    thread.join(60)
    wait_for(lambda: site.answers, "the answer")
    reserved, committed = site.ledger()
    return {
        "waited": waited and time.monotonic() - begin >= 3.0,
        "answer": code_of(site.answers[0]),
        "reserved": reserved,
        "committed": committed,
        "trained": trained,
    }
