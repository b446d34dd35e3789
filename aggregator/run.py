"""`fedmed run`: one experiment from data to an answer.

    prepare data -> start (or find) the federation -> follow its rounds -> merge -> register -> serve -> ask -> report

    run_experiment(load_experiment("demo"), Path("runs"), Console())

Everything up to the last committed round is in the run's folder, so `conclude_run` can do the second half again: a
registry that is down costs nothing but a retry.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from aggregator import prepare
from aggregator.ask import ask_served_model
from aggregator.launcher import follow, stop_run, submit
from aggregator.live import LiveView, print_summary
from aggregator.local import start_local_federation
from aggregator.processes import ProcessGroup
from aggregator.publish import build_model, publish
from aggregator.registry import open_registry
from aggregator.report import build_report, write_html
from fedmed.config import Experiment, parse_experiment
from fedmed.errors import FederationError, RegistryError


def run_experiment(experiment: Experiment, runs_dir: Path, console: Console, *, superlink: str = "") -> dict[str, Any]:
    """Run a federation and everything after it; returns the report, also written to the run's folder.

    Args:
        experiment: the resolved configuration.
        runs_dir: absolute; the run's folder is made in it.
        superlink: control address of a SuperLink whose sites were started by hand; "" starts all of it here.

    Raises:
        FedMedError: and whatever was started has been ended again.
    """
    started = time.monotonic()
    folder = prepare.new_run_folder(experiment, runs_dir)
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
    data = prepare.write_data(experiment, folder, with_sites=not superlink)
    run = {"key": prepare.new_run_key(experiment), "data_source": data.source, "notes": list(data.notes)}
    prepare.write_json(folder / "run.json", run)
    for note in data.notes:
        console.print(f"data: {note}", highlight=False, soft_wrap=True)
    threading.Thread(target=_warm_up, args=(experiment, runs_dir), daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="fedmed-") as sockets, ProcessGroup(folder / "logs") as processes:
        address = superlink or start_local_federation(experiment, folder, Path(sockets), processes)
        _follow_rounds(experiment, folder, address, processes, console, local=not superlink)
    prepare.write_json(folder / "run.json", run | {"federation_s": time.monotonic() - started})
    return conclude_run(folder, console)


def conclude_run(folder: Path, console: Console) -> dict[str, Any]:
    """Merge, register, serve, ask and report from the committed rounds in `folder`."""
    started = time.monotonic()
    experiment, run = _read_run(folder)
    console.print("merging the adapter into the base model", highlight=False)
    build_model(folder, experiment)
    version = None
    registry = open_registry(experiment.registry.uri, folder.parent)
    try:
        version = publish(folder, registry)
    except RegistryError as error:
        console.print(f"warning: {error.message}; the run is complete on disk", style="yellow", highlight=False)
        console.print(f"  hint: when the registry is back: fedmed registry replay {folder}", highlight=False)
    served = None
    if version is not None:
        with ProcessGroup(folder / "logs") as processes:
            served = ask_served_model(folder, experiment, version, processes)
    wall_s = run.get("federation_s", 0.0) + time.monotonic() - started
    report = build_report(folder, experiment, version=version, served=served, wall_s=wall_s)
    prepare.write_json(folder / "report.json", report)
    write_html(report, folder / "report.html")
    if version is not None:
        registry.attach(version, [folder / "report.json", folder / "report.html"])
    print_summary(report, folder, console)
    return report


def _warm_up(experiment: Experiment, runs_dir: Path) -> None:
    """Import MLflow and open the store while the hospitals train: seconds that somebody would wait for afterwards."""
    with contextlib.suppress(RegistryError):  # a store that is down is told when it is needed
        open_registry(experiment.registry.uri, runs_dir).versions(experiment.registry.name)


def _follow_rounds(
    experiment: Experiment, folder: Path, address: str, processes: ProcessGroup, console: Console, *, local: bool
) -> None:
    """Submit the run and show its events until it has finished; a run that we leave early is stopped."""
    run = submit(address, folder, folder / "flower", local=local)
    finished = False
    try:
        with LiveView(console, experiment) as view:
            for event in follow(run, folder / "events.jsonl", processes):
                view.handle(event)
                if event["kind"] == "failed":
                    raise FederationError(event["message"], event.get("hint") or f"see the logs in {folder / 'logs'}")
        finished = True
    finally:
        if not finished and not local:
            stop_run(run)


def _read_run(folder: Path) -> tuple[Experiment, dict[str, Any]]:
    try:
        experiment = parse_experiment(json.loads((folder / "experiment.json").read_text()))
        run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    except FileNotFoundError as error:
        raise FederationError(f"{folder} is not a run folder: {error.filename} is missing") from None
    return experiment, run
