"""Faults of the network and its processes: hospitals that die, are late or cut off, a SuperLink that dies."""

from __future__ import annotations

from collections import Counter

from tests.faults.case import Facts, case
from tests.faults.consortium import Consortium, make_consortium
from tests.faults.lab import Lab, json_lines, wait_for

NAMES = ["north", "harbour", "valley"]


def federation(lab: Lab, *overrides: str) -> Consortium:
    """Three hospitals of which two are enough; valley trains as long as its file `hold` is there."""
    made = make_consortium(lab, NAMES, "federation.quorum=2", *overrides)
    made.hospitals["valley"].hold.touch()
    for hospital in made.hospitals.values():
        hospital.start()
    return made.begin()


def replied(made: Consortium, number: int) -> list[str]:
    return sorted(reply["site"] for reply in made.record(number)["replies"])


@case(
    2,
    "a hospital's daemon is killed in the middle of its training",
    "the round goes on with {replies}; left out: {left_out}; {reserved} reserved, {committed} committed there; when it is "
    "back it takes part in a later round: {back}",
    replies=["harbour", "north"],
    left_out=["valley"],
    reserved=1,
    committed=0,
    back=True,
)
def daemon_killed(lab: Lab) -> Facts:
    made = federation(lab, "training.rounds=500")
    valley = made.hospitals["valley"]
    made.wait("round_started", round=1)
    valley.wait_until_training()
    valley.kill()
    made.wait("round_committed", round=1)
    reserved, committed = valley.ledger()
    valley.hold.unlink()
    valley.start()
    back = made.wait("reply", site="valley")["round"] > 1
    return {
        "replies": replied(made, 1),
        "left_out": sorted(made.record(1)["left_out"]),
        "reserved": reserved,
        "committed": committed,
        "back": back,
    }


@case(
    6,
    "a hospital's result comes after the round's deadline",
    "the round is closed with {replies}, and the same after the late result: {same}; an event names the hospital: {event}; "
    "its own audit says: {audit}; it takes part in a later round: {back}",
    replies=["harbour", "north"],
    same=True,
    event="late, round 1",
    audit="accepted released",
    back=True,
)
def late_result(lab: Lab) -> Facts:
    made = federation(lab, "training.rounds=500", "federation.deadline_s=15")
    valley = made.hospitals["valley"]
    made.wait("round_committed", round=1)
    before = made.record(1), {key: value.tobytes() for key, value in made.adapter(1).items()}
    valley.hold.unlink()
    late = made.wait("late", site="valley")
    made.wait("reply", site="valley")
    after = made.record(1), {key: value.tobytes() for key, value in made.adapter(1).items()}
    decisions = [line["decision"] for line in json_lines(valley.root / "audit.jsonl") if line["round"] == 1]
    return {
        "replies": replied(made, 1),
        "same": before == after,
        "event": f"late, round {late['round']}",
        "audit": " ".join(decisions),
        "back": True,
    }


@case(
    23,
    "a hospital is cut off from the network in the middle of a round (connections stay, nothing arrives), for longer than "
    "the round's deadline",
    "the round goes on at its deadline with {replies}; left out: {left_out}; later rounds do not wait for it: {on}; when the "
    "network is back it takes part: {back}; no round was reserved twice: {once}",
    replies=["harbour", "north"],
    left_out=["valley"],
    on=True,
    back=True,
    once=True,
)
def partition(lab: Lab) -> Facts:
    made = federation(lab, "training.rounds=500", "federation.deadline_s=15")
    valley = made.hospitals["valley"]
    made.wait("round_started", round=1)
    valley.wait_until_training()
    made.proxies["valley"].hold()
    valley.hold.unlink()
    made.wait("round_committed", round=2)
    on = replied(made, 2) == ["harbour", "north"]
    made.proxies["valley"].release()
    made.wait("reply", site="valley")
    rounds = Counter(line["round"] for line in json_lines(valley.root / "ledger.jsonl") if line["kind"] == "reserve")
    return {
        "replies": replied(made, 1),
        "left_out": sorted(made.record(1)["left_out"]),
        "on": on,
        "back": True,
        "once": max(rounds.values()) == 1,
    }


@case(
    24,
    "two of three hospitals die in the middle of a round",
    "the round is marked skipped: {skipped}; the adapter is the one before, to the byte: {same}; when they are back a round "
    "is made with {replies} replies",
    skipped=True,
    same=True,
    replies=3,
)
def below_the_quorum(lab: Lab) -> Facts:
    made = make_consortium(lab, NAMES, "federation.quorum=2", "training.rounds=500")
    dying = [made.hospitals[name] for name in ("harbour", "valley")]
    for hospital in dying:
        hospital.hold.touch()
    for hospital in made.hospitals.values():
        hospital.start()
    made.begin().wait("round_started", round=1)
    for hospital in dying:
        hospital.wait_until_training()
    for hospital in dying:
        hospital.kill()
    made.wait("round_committed", round=1)
    for hospital in dying:
        hospital.hold.unlink()
        hospital.start()
    full = made.wait("round_committed", replies=3)
    folder = made.run / "rounds"
    before, after = ((folder / name / "adapter.safetensors").read_bytes() for name in ("000", "001"))
    return {"skipped": made.record(1)["skipped"], "same": before == after, "replies": full["replies"]}


@case(
    1,
    "the SuperLink is killed in the middle of a round",
    "the run ends by itself with status {exit}; rounds committed: {rounds}; reservations of each round at each hospital: "
    "{reserved}; results that were there already were sent again: {resent}; {versions} version in the registry",
    limit_s=900,
    exit=0,
    rounds=[0, 1, 2, 3],
    reserved=[1],
    resent=True,
    versions=1,
)
def superlink_killed(lab: Lab) -> Facts:
    from tests import helpers_runs as runs

    root = lab.root / "runs"
    root.mkdir()
    folder = root / "hurt"
    with runs.ending_all(root):
        process = runs.start_run(root, "hurt", *runs.TWO_SITES, "training.rounds=3")
        runs.wait_for_event(process, folder, "round_committed", round=1)
        wait_for(lambda: 2 in runs.decisions(folder, "north", "accepted"), "round 2 to be trained")
        runs.superlink(root).kill()
        process.communicate(timeout=600)
    sites = ("north", "valley")
    listed = lab.fedmed("registry", "list", "--runs-dir", str(root)).stdout
    return {
        "exit": process.returncode,
        "rounds": sorted(int(path.parent.name) for path in (folder / "rounds").glob("[0-9]*/round.json")),
        "reserved": sorted({count for site in sites for count in runs.reservations(folder, site).values()}),
        "resent": any(runs.decisions(folder, site, "resent") for site in sites),
        "versions": len(listed.splitlines()),
    }
