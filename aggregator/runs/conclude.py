"""The second half of `fedmed run`, and all of `fedmed resume`: from committed rounds on disk to an answer and a report.

    merged model (made by the ServerApp, or again here) -> register -> serve -> ask -> report.json, report.html

It reads the run's folder alone, so it can be done again: a registry that is down costs nothing but a retry.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from aggregator.registry import open_registry
from aggregator.registry.outbox import Outbox, deliver
from aggregator.registry.publish import build_model
from aggregator.reports.report import build_report, write_html
from aggregator.runs.folder import read_run
from aggregator.runs.processes import ProcessGroup
from aggregator.serving.ask import ask_served_model
from aggregator.watching.live import print_summary
from fedmed.errors import RegistryError
from fedmed.files import write_json


def conclude_run(folder: Path, console: Console, *, may_register: bool = True) -> dict[str, Any]:
    """Merge, register, serve, ask and report from the committed rounds in `folder`.

    Args:
        may_register: False while something that was sent to the registry before still hangs there.
    """
    started = time.monotonic()
    experiment, run = read_run(folder)
    console.print("registering, serving and asking the merged model", highlight=False)
    build_model(folder, experiment)
    version = None
    registry = open_registry(experiment.registry.uri, folder.parent)
    try:
        if not may_register:
            raise RegistryError("the registry holds a call and does not answer")
        version = deliver(Outbox(folder), registry)
    except RegistryError as error:
        warning = f"warning: {error.message}; the run is complete on disk"
        hint = f"  hint: when the registry is back: fedmed registry replay {folder}"
        console.print(warning, style="yellow", highlight=False, soft_wrap=True)
        console.print(hint, highlight=False, soft_wrap=True)  # a command that is broken in two cannot be copied
    served = None
    if version is not None:
        with ProcessGroup(folder / "logs") as processes:
            served = ask_served_model(folder, experiment, version, processes)
    wall_s = run.get("federation_s", 0.0) + time.monotonic() - started
    report = build_report(folder, experiment, version=version, served=served, wall_s=wall_s)
    write_json(folder / "report.json", report)
    write_html(report, folder / "report.html")
    if version is not None:
        registry.attach(version, [folder / "report.json", folder / "report.html"])
    print_summary(report, folder, console)
    return report
