"""`fedmed watch RUN`: what `fedmed run` shows, for whoever else may read the run's folder. Changes nothing.

watch_run(Path("runs/demo"), Console())      # until the run has finished or failed, or Ctrl-C
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from aggregator.rounds.lookout import what_is_wrong
from aggregator.runs.folder import EVENTS_FILE, read_experiment
from aggregator.watching.events import LAST_KINDS, EventReader
from aggregator.watching.live import LiveView

POLL_S = 0.5


def watch_run(folder: Path, console: Console) -> str:
    """Shows the run's events, older ones added up, until its last one; returns that one's kind.

    Raises:
        FederationError: `folder` is not a run's.
    """
    experiment = read_experiment(folder)
    events = EventReader(folder / EVENTS_FILE)
    with LiveView(console, experiment) as view:
        earlier = list(events.new())
        for event in earlier:
            view.recall(event)
        if earlier:
            view.show_state()
        last = str(earlier[-1]["kind"]) if earlier else ""
        while last not in LAST_KINDS:
            view.alarm(what_is_wrong(folder))
            time.sleep(POLL_S)
            for event in events.new():
                view.handle(event)
                last = str(event["kind"])
    return last
