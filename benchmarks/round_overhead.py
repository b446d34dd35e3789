"""What a round costs besides training: FedMed and a stock Flower 1.39 FedAvg app, side by side on one machine.

    python -m benchmarks.round_overhead --json            # two turns of each, about five minutes
    python -m benchmarks.round_overhead --json --quick    # one turn of each, within a minute on two idle cores

Both sides: three sites, one SuperLink in memory, loopback gRPC in plain text, an adapter of 10.5 MB in 24 float32 tensors, one
OpenMP thread a process. Every site evaluates and trains in every round, and nothing is trained: a site returns what it was sent, so
a round's wall time is its overhead. A round is measured from the end of the one before it to its own end, on the server's clock. Of
each turn the first round is left out (in it stock Flower installs the app at its nodes, and a site imports its accounting), unless
there is no other.

| counted       | FedMed                                                   | stock Flower                                     |
| ------------- | -------------------------------------------------------- | ------------------------------------------------ |
| exchanges     | one: evaluate and train in one task                      | two: train, then evaluate                        |
| at the server | task, checks, folding, commit to disk (fsync)            | FedAvg                                           |
| at the site   | `fedmed-site connect`; the real daemon: policy, ledger   | SuperNode; a ClientApp that imports no torch     |
|               | with its accounting, audit, stored result (fsync)        |                                                  |
| settings      | as `fedmed run` sets them                                | Flower's defaults, no installing of dependencies |

Not counted on either side: evaluation at the server, and in the stock app what a real ClientApp adds, which is importing torch
and loading the base model for each message.

Prints one object: fedmed_overhead_s and stock_overhead_s (medians over rounds), ratio, and the rounds of each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aggregator.runs.processes import ProcessGroup
from aggregator.superlink.flower_runs import submit
from aggregator.superlink.launcher import executable, flower_env, free_ports, start_superlink
from aggregator.watching.events import read_events
from benchmarks.round_overhead_adapter import BASE_SHA256, COLUMNS, ROWS, TENSORS
from fedmed.config import load_experiment, to_dict
from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.errors import FederationError
from hospital_client.setup import create_site

SITES = ("north", "harbour", "valley")
PATIENTS = 40
APPS = Path(__file__).parent / "round_overhead_apps"
ROOT = Path(__file__).parents[1]
LIMIT_S = 300.0  # for one turn of one side


def main() -> None:
    arguments = _arguments()
    turns = [(stock, 1), (fedmed, 4)] if arguments.quick else [(stock, 3), (fedmed, 6), (fedmed, 6), (stock, 3)]
    measured: dict[str, list[list[float]]] = {"fedmed": [], "stock": []}
    for side, rounds in turns:
        seconds = _in_a_folder(side, rounds)
        measured[side.__name__].append(seconds)
        print(f"{side.__name__}: {[round(value, 2) for value in seconds]} s a round", file=sys.stderr, flush=True)
    print(json.dumps(summary(measured), indent=None if arguments.json else 2))


def summary(measured: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """What is printed: `measured` holds the seconds of each round, of each turn, of each side."""
    kept = {side: [value for turn in turns for value in settled(turn)] for side, turns in measured.items()}
    fedmed_s, stock_s = statistics.median(kept["fedmed"]), statistics.median(kept["stock"])
    return {
        "fedmed_overhead_s": round(fedmed_s, 3),
        "stock_overhead_s": round(stock_s, 3),
        "ratio": round(fedmed_s / stock_s, 4),
        "sites": len(SITES),
        "adapter_bytes": 4 * TENSORS * ROWS * COLUMNS,
        "cores": os.cpu_count(),
        "rounds_s": {side: [[round(value, 3) for value in turn] for turn in turns] for side, turns in measured.items()},
    }


def settled(turn: Sequence[float]) -> Sequence[float]:
    """A turn's rounds without its first, where there are others."""
    return turn[1:] or turn


def gaps(ends: Sequence[float]) -> list[float]:
    """The time of each round, from when round 0, 1, 2, ... ended."""
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def stock(group: ProcessGroup, folder: Path, rounds: int) -> list[float]:
    """Seconds of each round of Flower's own programs and FedAvg."""
    wanted = {"tensors": TENSORS, "rows": ROWS, "columns": COLUMNS, "sites": len(SITES), "rounds": rounds}
    (folder / "wanted.json").write_text(json.dumps(wanted))
    fleet, control, *ports = (f"127.0.0.1:{port}" for port in free_ports(2 + len(SITES)))
    command = [executable("flower-superlink"), "--insecure", "--disable-runtime-dependency-installation"]
    command += ["--fleet-api-type", "grpc-rere", "--fleet-api-address", fleet, "--port", control.rpartition(":")[2]]
    superlink = group.start("superlink", command, _stock_env(folder / "superlink"))
    _wait(lambda: "Uvicorn running" in superlink.log.read_text(), group)
    for number, address in enumerate(ports):
        command = [executable("flower-supernode"), "--insecure", "--grpc-rere", "--superlink", fleet]
        command += ["--port", address.rpartition(":")[2]]
        group.start(f"supernode-{number}", command, _stock_env(folder / f"supernode-{number}"))
    submit(control, folder, folder / "flower", bundle=APPS / "stock")
    _wait((folder / "rounds.json").exists, group)
    return gaps(json.loads((folder / "rounds.json").read_text()))


def fedmed(group: ProcessGroup, folder: Path, rounds: int, sites: Sequence[str] = SITES) -> list[float]:
    """Seconds of each round of FedMed's programs and round loop."""
    experiment = load_experiment(
        "demo",
        [
            "federation.method=fedavg",  # the whole adapter travels both ways, as in the stock app
            f"partition.sites=[{','.join(sites)}]",
            f"federation.quorum={len(sites)}",
            f"training.rounds={rounds}",
            "privacy.noise_multiplier=2.0",
            "privacy.metrics_noise_multiplier=8.0",
        ],
    )
    (folder / "experiment.json").write_text(json.dumps(to_dict(experiment)))
    data = folder / "data"
    write_manifest(data, phantom_examples(PATIENTS, 0, domain="hospital", split="train"))
    policy = {
        "base_models": f"[{BASE_SHA256}]",
        "epsilon_budget": "100",
        "delta": str(experiment.privacy.delta),
        "allow_metrics": "true",
        "patient_count": "rounded",
    }
    superlink = start_superlink(group, folder / "flower")
    for site in sites:
        create_site(folder / site, {"name": site, "cohort": site, "data": str(data), "socket": "s.sock"}, policy)
        daemon = [sys.executable, "-m", "benchmarks.round_overhead_adapter", str(folder / site)]
        group.start(site, daemon, flower_env(folder / "home"))
        connect = [sys.executable, "-m", "hospital_client.cli", "connect", str(folder / site)]
        group.start(
            f"connect-{site}", [*connect, "--superlink", superlink.fleet, "--insecure"], flower_env(folder / "home")
        )
    submit(superlink.control, folder, folder / "flower", bundle=APPS / "fedmed")
    events = folder / "events.jsonl"
    _wait(lambda: _has_finished(events), group)
    shown = [event for event in read_events(events) if event["kind"] in ("round_started", "round_committed")]
    if any(event.get("skipped") or event.get("replies", len(sites)) < len(sites) for event in shown):
        raise FederationError(
            "a site was missing in a round: this is no measurement", "run it again on an idle machine"
        )
    ends = [event["time"] for event in shown if event["kind"] == "round_committed"]
    return gaps([shown[0]["time"], *ends])


def _has_finished(events: Path) -> bool:
    last = {event["kind"]: event for event in read_events(events)} if events.exists() else {}
    if "failed" in last:
        raise FederationError(f"FedMed's round loop failed: {last['failed']['message']}")
    return "finished" in last


def _stock_env(home: Path) -> dict[str, str]:
    """What our launcher sets, without the shorter poll that FedMed's own runs have."""
    return {key: value for key, value in flower_env(home).items() if "POLL_INTERVAL" not in key}


def _in_a_folder(side: Callable[[ProcessGroup, Path, int], list[float]], rounds: int) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="fm-") as scratch, ProcessGroup(Path(scratch) / "logs") as group:
        folder = Path(scratch) / "run"
        folder.mkdir()
        return side(group, folder, rounds)


def _wait(done: Callable[[], bool], group: ProcessGroup) -> None:
    end = time.monotonic() + LIMIT_S
    while not done():
        group.check()
        if time.monotonic() > end:
            raise FederationError(f"no end after {LIMIT_S:g} s", "run it again on an idle machine")
        time.sleep(0.5)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute")
    parser.add_argument("--json", action="store_true", help="one line instead of indented")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # as many processes as there are here must not spin a thread on every core each
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    main()
