"""Writes how many nodes are online to nodes.jsonl in the run's folder at each change, and what each new one answers."""

import json
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from aggregator.rounds.exchange import FlowerExchange
from fedmed.messages import DescribeTask, decode, encode

LIFE_S = 600.0
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    path = Path(str(context.run_config["run-dir"])) / "nodes.jsonl"
    exchange = FlowerExchange(grid)
    known: set[int] = set()
    online: list[int] | None = None
    answered = ""
    end = time.monotonic() + LIFE_S
    while time.monotonic() < end:
        nodes = exchange.nodes()
        for node in set(nodes) - known:
            known.add(node)
            (reply,) = exchange.send({node: encode(DescribeTask(run="watch"))}, 60.0)
            answered = decode(reply.frame)[0].type if reply.frame else reply.error
        if nodes != online:
            online = nodes
            with path.open("a") as file:
                file.write(json.dumps({"online": len(nodes), "answered": answered}) + "\n")
        time.sleep(0.1)
