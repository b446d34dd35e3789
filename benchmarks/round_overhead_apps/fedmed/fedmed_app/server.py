"""FedMed's round loop on the benchmark's adapter; the rounds are committed in the run's folder."""

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from aggregator.rounds.exchange import FlowerExchange
from aggregator.rounds.store import RoundStore
from aggregator.rounds.strategy import run_federation
from aggregator.watching.events import EventLog
from benchmarks.round_overhead_adapter import BASE_SHA256, adapter, unscored
from fedmed.config import parse_experiment

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path(str(context.run_config["run-dir"]))
    experiment = parse_experiment(json.loads((folder / "experiment.json").read_text()))
    events = EventLog(folder / "events.jsonl")
    store = RoundStore(folder / "rounds")
    try:
        run_federation(experiment, FlowerExchange(grid), store, unscored, events, adapter(), BASE_SHA256)
    except Exception as error:
        events.emit("failed", message=str(error), hint="")
        raise
    events.emit("finished")
