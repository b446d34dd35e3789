"""`fedmed run` and `fedmed resume`: one experiment from data to an answer, also over several starts.

    prepare data -> start (or find) the federation -> see its rounds through -> conclude (merge, register, serve, ask, report)

    run_experiment(load_experiment("demo"), Path("runs"), Console())
    resume_run(Path("runs/demo"), Console())

Everything up to the last committed round is in the run's folder: its key, its data, the sites with their ledgers and stored
results, the rounds. So a run can be gone on with after any end, and `aggregator.runs.conclude` can do its part again. That module
needs torch, PEFT and MLflow, which take seconds to import: it is imported while the hospitals get ready.

| resumed                                | what happens                                                                     |
| -------------------------------------- | -------------------------------------------------------------------------------- |
| rounds are missing                     | the federation is started on the same folder, and goes on after the last round   |
| a site finished training meanwhile     | it is given the same task, and hands its stored result over: nothing is spent    |
| the sites' evaluation alone is missing | the same, for that                                                               |
| no round is missing                    | concluded again: the same version, a new report                                  |
| another `fedmed` works on the folder   | FederationError naming its process                                               |
| a killed `fedmed run` left processes   | they are ended first; with --superlink, a server app at work is followed         |
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from aggregator.registry import open_registry
from aggregator.registry.mirror import Mirror
from aggregator.rounds.evaluation import evaluation_due
from aggregator.rounds.stages import next_place
from aggregator.rounds.store import RoundStore
from aggregator.runs import prepare
from aggregator.runs.folder import RUN_FILE, read_run
from aggregator.runs.local import start_local_federation
from aggregator.runs.locks import COMMAND_LOCK, hold
from aggregator.runs.processes import ProcessGroup, end_leftovers
from aggregator.runs.sockets import socket_folder
from aggregator.runs.supervise import Target, see_through
from aggregator.watching.live import LiveView
from fedmed.config import Experiment
from fedmed.errors import FederationError
from fedmed.files import write_json


def run_experiment(
    experiment: Experiment,
    runs_dir: Path,
    console: Console,
    *,
    superlink: str = "",
    root_certificates: Path | None = None,
) -> dict[str, Any]:
    """Run a federation and everything after it; returns the report, also written to the run's folder.

    Args:
        experiment: the resolved configuration.
        runs_dir: absolute; the run's folder is made in it.
        superlink: control address of a SuperLink whose sites were started by hand; "" starts all of it here.
        root_certificates: of that SuperLink, for TLS; None is plain text, on loopback alone.

    Raises:
        FedMedError: and whatever was started has been ended again.
    """
    folder = prepare.new_run_folder(experiment, runs_dir)
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
    with hold(folder / COMMAND_LOCK, "another command"):
        data = prepare.write_data(experiment, folder, with_sites=not superlink)
        run = {"key": prepare.new_run_key(experiment), "data_source": data.source, "notes": list(data.notes)}
        write_json(folder / RUN_FILE, run)
        for note in data.notes:
            console.print(f"data: {note}", highlight=False, soft_wrap=True)
        return _run_to_the_end(experiment, folder, console, Target(superlink, root_certificates))


def resume_run(
    folder: Path, console: Console, *, superlink: str = "", root_certificates: Path | None = None
) -> dict[str, Any]:
    """Go on with a run after its last committed round, and conclude it; returns the report.

    Args:
        folder: absolute, of a run.
        superlink, root_certificates: as for `run_experiment`; where its ServerApp still works, that one is followed.

    Raises:
        FedMedError: `folder` is not a run's, another command works on it, or as `run_experiment`.
    """
    experiment, _ = read_run(folder)
    with hold(folder / COMMAND_LOCK, "another command"):
        if left := end_leftovers(folder):
            console.print(
                f"ended what an earlier start had left running: {', '.join(left)}", highlight=False, soft_wrap=True
            )
        records = RoundStore(folder / "rounds").records()
        rounds_done = bool(records) and next_place(experiment.plan, records) is None
        if rounds_done and not evaluation_due(experiment, RoundStore(folder / "rounds")):
            return _conclude(folder, console)
        if not superlink and not (folder / "sites").is_dir():
            raise FederationError(
                f"the sites of {folder.name} were started elsewhere", f"fedmed resume {folder} --superlink ADDRESS"
            )
        return _run_to_the_end(experiment, folder, console, Target(superlink, root_certificates))


def _run_to_the_end(experiment: Experiment, folder: Path, console: Console, target: Target) -> dict[str, Any]:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(ProcessGroup(folder / "logs", mark=folder))
        if not target.control:
            sites = ", ".join(experiment.partition.sites)
            console.print(
                f"starting a SuperLink, and a site daemon and a connector for each of {sites}",
                highlight=False,
                soft_wrap=True,
            )
            sockets = stack.enter_context(socket_folder(folder))
            target = Target.of(start_local_federation(experiment, folder, sockets, processes))
        threading.Thread(target=_warm_up, daemon=True).start()
        registry = open_registry(experiment.registry.uri, folder.parent)
        with LiveView(console, experiment) as view, Mirror(folder, registry, view.note) as mirror:
            see_through(folder, target, view, also=mirror.handle)
    _, run = read_run(folder)
    federation_s = run.get("federation_s", 0.0) + time.monotonic() - started
    write_json(folder / RUN_FILE, run | {"federation_s": federation_s})
    return _conclude(folder, console, may_register=not mirror.stuck)


def _conclude(folder: Path, console: Console, *, may_register: bool = True) -> dict[str, Any]:
    from aggregator.runs.conclude import conclude_run

    return conclude_run(folder, console, may_register=may_register)


def _warm_up() -> None:
    """Import what comes last: seconds that somebody would wait for afterwards. The store is opened by the mirror."""
    import aggregator.runs.conclude  # noqa: F401
