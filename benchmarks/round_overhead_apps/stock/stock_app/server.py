"""FedAvg with its defaults. Writes when each round ended, in seconds, to rounds.json in the run's folder."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path(str(context.run_config["run-dir"]))
    wanted = json.loads((folder / "wanted.json").read_text())
    rng = np.random.default_rng(0)
    shape = (wanted["rows"], wanted["columns"])
    arrays = {f"t{number}": rng.normal(size=shape).astype(np.float32) for number in range(wanted["tensors"])}
    ends: list[float] = []

    def note(number: int, _: ArrayRecord) -> MetricRecord | None:
        ends.append(time.monotonic())
        return None

    while len(list(grid.get_node_ids())) < wanted["sites"]:
        time.sleep(0.1)
    strategy = FedAvg(min_available_nodes=wanted["sites"])
    initial = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    strategy.start(grid, initial, num_rounds=wanted["rounds"], evaluate_fn=note)
    (folder / "rounds.part").write_text(json.dumps(ends))
    (folder / "rounds.part").rename(folder / "rounds.json")
