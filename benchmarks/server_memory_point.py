"""One point of benchmarks/server_memory.py: one side with so many sites, in this process, and the peak of its memory.

    python -m benchmarks.server_memory_point '{"side": "fedmed", "sites": 10, "megabytes": 50}'

Both sides speak through the same Grid in memory. What is sent lies in a file, and every reply is made in another process when it is
pulled, so that this one holds what the server holds and nothing of a site.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from aggregator.aggregation.mean import select
from aggregator.rounds.exchange import FlowerExchange
from aggregator.rounds.store import RoundStore
from aggregator.rounds.strategy import run_federation
from aggregator.watching.events import EventLog
from benchmarks.round_overhead_adapter import BASE_SHA256, unscored
from fedmed.config import Experiment, load_experiment
from fedmed.errors import FederationError
from fedmed.messages import DescribeTask, SiteInfo, TrainResult, TrainTask, decode, encode, sha256_hex
from fedmed.models.encoding import State, decode_state, encode_parts
from fedmed.wire.record import pack, unpack

RANK, WIDTH = 16, 4096  # a layer of an 8B model: A and B of 256 KiB each
LAYER_BYTES = 2 * 4 * RANK * WIDTH
ROUNDS = 2  # what is kept from the first shows in the second
PATIENTS = 100


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured: `overrides` are of the experiment, for FedMed's side."""

    side: str
    sites: int
    megabytes: float
    overrides: tuple[str, ...] = ()


def measure(point: Point) -> dict[str, float]:
    """Peak of the resident memory above what it is after a run without an adapter, in adapters; and the seconds it took."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = (
        1,
        1,
        1,
    )  # as Flower sets before it calls a ServerApp
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    layers = max(1, round(point.megabytes * 1e6 / LAYER_BYTES))
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with tempfile.TemporaryDirectory(prefix="fedmed-memory-") as scratch, pool:
        run(dataclasses.replace(point, sites=1, overrides=()), 0, pool, Path(scratch) / "warm-up")
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before, begin = reset_peak(), time.monotonic()
        run(point, layers, pool, Path(scratch) / "run")
        peak, seconds = peak_bytes() - before, time.monotonic() - begin
    return {"peak_adapters": round(peak / (layers * LAYER_BYTES), 3), "seconds": round(seconds, 1)}


def run(point: Point, layers: int, pool: ProcessPoolExecutor, folder: Path) -> None:
    """Two rounds of one side; no layers: an adapter of a few bytes."""
    folder.mkdir()
    {"fedmed": run_fedmed, "stock": run_stock}[point.side](point, layers, MemoryGrid(point, pool, folder), folder)


def run_fedmed(point: Point, layers: int, grid: MemoryGrid, folder: Path) -> None:
    store, events = RoundStore(folder / "rounds"), EventLog(folder / "events.jsonl")
    experiment = settings(point)
    run_federation(experiment, FlowerExchange(grid), store, unscored, events, adapter(layers, experiment), BASE_SHA256)
    if any(len(record.replies) != point.sites for record in store.records()[1:]):
        raise FederationError("a site was left out: this is no measurement", f"see {folder / 'events.jsonl'}")


def run_stock(point: Point, layers: int, grid: MemoryGrid, folder: Path) -> None:
    del folder
    arrays = ArrayRecord({key: Array(tensor.numpy()) for key, tensor in adapter(layers, settings(point)).items()})
    FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1).start(grid, arrays, num_rounds=ROUNDS)


def settings(point: Point) -> Experiment:
    """The experiment of FedMed's side; fedavg, whose sites return the whole adapter as stock Flower's do, unless told otherwise."""
    names = [f"site-{number}" for number in range(1, point.sites + 1)]
    fixed = [f"partition.sites=[{','.join(names)}]", f"federation.quorum={point.sites}", f"training.rounds={ROUNDS}"]
    noise = ["privacy.noise_multiplier=2.0", f"lora.rank={RANK}", "federation.deadline_s=3000"]
    return load_experiment("demo", ["federation.method=fedavg", *fixed, *noise, *point.overrides])


def adapter(layers: int, experiment: Experiment) -> State:
    """A and B of so many layers, all numbers drawn; R where the method has one."""
    generator = torch.Generator().manual_seed(0)
    rank, width = (RANK, WIDTH) if layers else (RANK, 2 * RANK)
    state: State = {}
    for layer in range(max(1, layers)):
        state[f"m.{layer}.lora_A.weight"] = torch.rand(rank, width, generator=generator)
        state[f"m.{layer}.lora_B.weight"] = torch.rand(width, rank, generator=generator)
        if experiment.lora.core:
            state[f"m.{layer}.lora_R.weight"] = torch.rand(rank, rank, generator=generator)
    return state


class MemoryGrid(Grid):
    """Nodes 1, 2, ... that answer at once. `folder` holds what was sent last."""

    def __init__(self, point: Point, pool: ProcessPoolExecutor, folder: Path) -> None:
        self._point, self._pool, self._folder = point, pool, folder
        self._sent: dict[str, Message] = {}
        self._task = folder / "task"
        self._arrays: dict[str, tuple[str, tuple[int, ...], int]] = {}

    def set_run(self, run: Any) -> None:
        del run

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return Message(*args, **kwargs)

    def get_node_ids(self) -> list[int]:
        return list(range(1, self._point.sites + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keeps the messages without their content, which is the same for all and goes to a file."""
        self._sent = {}
        for number, message in enumerate(messages):
            if not number:
                self._keep(message.content)
            key = f"message {number}"
            message.metadata.__dict__["_message_id"] = key
            self._sent[key] = Message(content=RecordDict(), metadata=message.metadata)  # type: ignore[call-overload]
        return list(self._sent)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._reply(key) for key in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        del timeout
        return map(self._reply, self.push_messages(messages))

    def _keep(self, content: RecordDict) -> None:
        if self._point.side == "fedmed":
            self._task.write_bytes(unpack(content))
            return
        arrays = content.array_records["arrays"]
        with self._task.open("wb") as file:
            file.writelines(array.data for array in arrays.values())
        self._arrays = {key: (array.dtype, array.shape, len(array.data)) for key, array in arrays.items()}

    def _reply(self, key: str) -> Message:
        sent = self._sent[key]
        if self._point.side == "fedmed":
            path = self._folder / "reply"
            site = f"site-{sent.metadata.dst_node_id}"
            self._pool.submit(answer, str(self._task), str(path), site).result()
            return Message(pack(path.read_bytes()), reply_to=sent)
        with self._task.open("rb") as file:
            arrays = {
                name: Array(dtype, shape, "numpy.ndarray", file.read(size))
                for name, (dtype, shape, size) in self._arrays.items()
            }
        metrics = MetricRecord({"num-examples": PATIENTS})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=sent)


def answer(task_file: str, reply_file: str, site: str) -> None:
    """A site's reply to a task, from file to file: it returns what it was sent."""
    frame = Path(task_file).read_bytes()
    task, payload = decode(frame)
    if isinstance(task, DescribeTask):
        reply = encode(SiteInfo(task.run, site, "1", PATIENTS, "f" * 64, 0.0, 100.0))
    elif isinstance(task, TrainTask):
        received = decode_state(payload)
        returned = select(received, task.returned) | (_drawn_at_site(received) if task.method == "flora" else {})
        spent = (PATIENTS, task.privacy.steps, 0.5, task.privacy.delta, 0.5, "f" * 64)
        result = TrainResult(task.run, task.round, site, sha256_hex(frame), *spent)
        reply = encode(result, encode_parts(returned, task.dtype))
    else:
        raise FederationError(f"a site was sent {task.type}, expected a task")
    Path(reply_file).write_bytes(reply)


def _drawn_at_site(received: State) -> State:
    """The B that FLoRA's sites have without being sent it: zero."""
    pairs = {key.replace("lora_A", "lora_B"): tensor for key, tensor in received.items() if "lora_A" in key}
    return {key: torch.zeros(tensor.shape[1], tensor.shape[0]) for key, tensor in pairs.items()}


def reset_peak() -> int:
    """Begins to measure the peak anew. Returns what is resident, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most that was resident since `reset_peak`."""
    return _status("VmHWM")


def _status(key: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:")]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    print(json.dumps(measure(Point(**json.loads(sys.argv[1])))))
