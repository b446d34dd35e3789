"""Faults of the federated evaluation: a hospital's daemon, and the SuperLink, that die while held-out patients are evaluated."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from aggregator.superlink.flower_runs import submit
from tests.faults.case import Facts, case
from tests.faults.consortium import make_consortium
from tests.faults.lab import Lab, json_lines, wait_for

NAMES = ["north", "harbour", "valley"]


def spent(site: Path) -> Counter[str]:
    """Reservations by cohort, counted without the product's own reader: `north` trained, `north.held_out` evaluated."""
    return Counter(line["cohort"] for line in json_lines(site / "ledger.jsonl") if line["kind"] == "reserve")


def committed(site: Path) -> Counter[str]:
    """Of them, those with a commit."""
    lines = json_lines(site / "ledger.jsonl")
    cohorts = {line["sequence"]: line["cohort"] for line in lines if line["kind"] == "reserve"}
    return Counter(cohorts[line["reservation"]] for line in lines if line["kind"] == "commit")


def both(counts: Counter[str]) -> str:
    """Of the patients who are trained on, and of those who are held out."""
    held_out = sum(count for cohort, count in counts.items() if cohort.endswith(".held_out"))
    return f"{counts.total() - held_out} and {held_out}"


@case(
    2,
    "a hospital's daemon is killed in the middle of the federated evaluation",
    "the run ends by itself, with the scores of {replies}; left out: {left_out}; reserved there for patients who are trained "
    "on and held out: {reserved}, committed: {committed}; elsewhere both are {others}; its ledger opens again with the same "
    "lines: {same}; the run, started again, asks nobody a second time: {once}",
    part="evaluation",
    replies=["harbour", "north"],
    left_out=["valley"],
    reserved="1 and 1",
    committed="1 and 0",
    others=["1 and 1"],
    same=True,
    once=True,
)
def daemon_killed(lab: Lab) -> Facts:
    asked = ("evaluation.federated=true", "evaluation.epsilon=10.0", "training.rounds=1", "federation.quorum=2")
    allowed = {"allow_metrics": "true", "min_metrics_noise_multiplier": "0.1"}
    made = make_consortium(lab, NAMES, *asked, held_out=30, **allowed)
    valley = made.hospitals["valley"]
    valley.hold_evaluation.touch()
    for hospital in made.hospitals.values():
        hospital.start()
    made.begin().wait("evaluation_started")
    valley.wait_until_training(times=2)
    valley.kill()
    made.wait("finished")
    record = json.loads((made.run / "rounds" / "evaluation.json").read_text())
    before = (valley.root / "ledger.jsonl").read_bytes()
    valley.hold_evaluation.unlink()
    valley.start()
    assert made.superlink is not None
    submit(made.superlink.control, made.run, made.run / "flower")
    wait_for(lambda: len(made.events("finished")) == 2, "the run to end a second time")
    others = [made.hospitals[name].root for name in record["left_out"].keys() ^ set(NAMES)]
    return {
        "replies": [reply["site"] for reply in record["replies"]],
        "left_out": sorted(record["left_out"]),
        "reserved": both(spent(valley.root)),
        "committed": both(committed(valley.root)),
        "others": sorted({both(count(root)) for root in others for count in (spent, committed)}),
        "same": (valley.root / "ledger.jsonl").read_bytes() == before,
        "once": len(made.events("evaluation_started")) == 1,
    }


@case(
    1,
    "the SuperLink is killed in the middle of the federated evaluation",
    "the run ends by itself with status {exit} and the scores of {replies}; killed before they were on disk: {early}; reserved "
    "and committed at each hospital for patients who are trained on and held out: {once}; what was answered already was sent "
    "again: {resent}; {versions} version in the registry",
    part="evaluation",
    limit_s=900,
    exit=0,
    replies=["north", "valley"],
    early=True,
    once=["1 and 1"],
    resent=True,
    versions=1,
)
def superlink_killed(lab: Lab) -> Facts:
    from tests import helpers_runs as runs

    root = lab.root / "runs"
    root.mkdir()
    folder, names = root / "hurt", ("north", "valley")
    record = folder / "rounds" / "evaluation.json"
    asked = ("evaluation.federated=true", "evaluation.epsilon=5.0", "partition.held_out=0.4", "training.rounds=1")
    with runs.ending_all(root):
        process = runs.start_run(root, "hurt", *runs.TWO_SITES, *asked)
        runs.wait_for_event(process, folder, "evaluation_started")
        wait_for(lambda: all(len(runs.decisions(folder, name, "accepted")) == 2 for name in names), "both to evaluate")
        early = not record.exists()
        runs.superlink(root).kill()
        process.communicate(timeout=600)
    sites = [folder / "sites" / name for name in names]
    listed = lab.fedmed("registry", "list", "--runs-dir", str(root)).stdout
    return {
        "exit": process.returncode,
        "replies": [reply["site"] for reply in json.loads(record.read_text())["replies"]],
        "early": early,
        "once": sorted({both(count(site)) for site in sites for count in (spent, committed)}),
        "resent": any(runs.decisions(folder, name, "resent") for name in names),
        "versions": len(listed.splitlines()),
    }
