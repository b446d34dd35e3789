"""`fedmed run`: one experiment from data to an answer.

    prepare data -> start (or find) the federation -> follow its rounds -> conclude (merge, register, serve, ask, report)

    run_experiment(load_experiment("demo"), Path("runs"), Console())

Everything up to the last committed round is in the run's folder, so `aggregator.conclude` can do the rest again. That
module needs torch, PEFT and MLflow, which take seconds to import: it is imported while the hospitals get ready.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from aggregator import prepare
from aggregator.flower_runs import follow, stop_run, submit
from aggregator.live import LiveView
from aggregator.local import LocalFederation, start_local_federation
from aggregator.processes import ProcessGroup
from fedmed.config import Experiment
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
    if not superlink:
        sites = ", ".join(experiment.partition.sites)
        console.print(
            f"starting a SuperLink, and a site daemon and a connector for each of {sites}",
            highlight=False,
            soft_wrap=True,
        )
    with tempfile.TemporaryDirectory(prefix="fedmed-") as sockets, ProcessGroup(folder / "logs") as processes:
        local = None if superlink else start_local_federation(experiment, folder, Path(sockets), processes)
        threading.Thread(target=_warm_up, args=(experiment, runs_dir), daemon=True).start()
        _follow_rounds(experiment, folder, local or superlink, processes, console)
    prepare.write_json(folder / "run.json", run | {"federation_s": time.monotonic() - started})
    from aggregator.conclude import conclude_run

    return conclude_run(folder, console)


def _warm_up(experiment: Experiment, runs_dir: Path) -> None:
    """Import what comes last, and open the store: seconds that somebody would wait for afterwards."""
    import aggregator.conclude  # noqa: F401
    from aggregator.registry import open_registry

    with contextlib.suppress(RegistryError):  # a store that is down is told when it is needed
        open_registry(experiment.registry.uri, runs_dir).versions(experiment.registry.name)


def _follow_rounds(
    experiment: Experiment, folder: Path, target: LocalFederation | str, processes: ProcessGroup, console: Console
) -> None:
    """Submit the run and show its events until it has finished; a run that we leave early is stopped.

    Args:
        target: the federation started here, or the control address of another one.
    """
    local = target if isinstance(target, LocalFederation) else None
    run = submit(local.control if local else str(target), folder, folder / "flower", local=bool(local))
    finished = False
    try:
        with LiveView(console, experiment) as view:
            if local:
                local.wait_until_ready()  # the ServerApp loads its model meanwhile
            for event in follow(run, folder / "events.jsonl", processes):
                view.handle(event)
                if event["kind"] == "failed":
                    raise FederationError(event["message"], event.get("hint") or f"see the logs in {folder / 'logs'}")
        finished = True
    finally:
        if not finished and not local:
            stop_run(run)
