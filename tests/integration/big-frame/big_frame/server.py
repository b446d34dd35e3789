"""Small frames first (for the time of an exchange), then one of 100 MB; what came back goes into the run's folder."""

import json
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import save

from aggregator.rounds.exchange import FlowerExchange
from aggregator.watching.events import EventLog
from fedmed.messages import DescribeTask, LoraSpec, OptimizerSpec, PrivacySpec, TrainTask, decode, encode, sha256_hex

SMALL_EXCHANGES = 3
FLOATS = 25_000_000
app = ServerApp()


def big_frame() -> tuple[bytes, str]:
    """A training task whose payload has 100 MB, and the payload's hash."""
    import numpy

    payload = save({"m.lora_B.weight": numpy.arange(FLOATS, dtype=numpy.float32).reshape(-1, 1000)})
    task = TrainTask(
        run="big",
        round=1,
        rounds=1,
        config_sha256="",
        base_model="",
        base_sha256="",
        method="ffa_lora",
        lora=LoraSpec(1, 1.0, ("projector",), ("all-linear",)),
        init_seed=0,
        frozen_sha256="",
        trainable=("lora_B",),
        returned=("lora_B",),
        privacy=PrivacySpec("none", 0.0, 0.5, 1.0, 1, 1, 0.0),
        optimizer=OptimizerSpec("sgd", 0.1, 0.0, 0.0, False),
        dtype="float32",
        precision="float32",
    )
    return encode(task, payload), sha256_hex(payload)


@app.main()
def main(grid: Grid, context: Context) -> None:
    run_dir = Path(str(context.run_config["run-dir"]))
    exchange, seconds = FlowerExchange(grid), []
    while not (nodes := exchange.nodes()):
        time.sleep(0.1)
    frame, sent = big_frame()
    for content in [encode(DescribeTask(run="big"))] * SMALL_EXCHANGES + [frame]:
        begin = time.monotonic()
        replies = list(exchange.send(dict.fromkeys(nodes, content), 300.0))
        seconds.append(round(time.monotonic() - begin, 2))
    (reply,) = replies
    result, payload = decode(reply.frame or b"")
    found = {"seconds": seconds, "type": result.type, "same": sha256_hex(payload) == sent, "bytes": len(payload)}
    (run_dir / "found.json").write_text(json.dumps(found))
    EventLog(run_dir / "events.jsonl").emit("finished")
