"""The adapter of benchmarks/round_overhead.py, 10 MB in 24 tensors, and a site that returns it without training.

    python -m benchmarks.round_overhead_adapter DIR        a real site daemon (policy, ledger, audit, results) in front of it

The trainer does what a real one does with the bytes, decode and encode, and counts as an evaluation does; it opens no record.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from fedmed.data.manifest import Manifest
from fedmed.messages import TrainTask
from fedmed.metrics.scores import Scores
from fedmed.models.adapter import State, decode_state
from fedmed.models.encoding import encode_parts
from fedmed.models.kinds import kind_of
from fedmed.privacy.counts import NoisyCounts
from hospital_client.daemon import run_daemon
from hospital_client.fakes import NoEvaluator
from hospital_client.release import Trained
from hospital_client.settings import SiteFolder, load_site
from hospital_client.site import ShouldStop, TrainRound

TENSORS, ROWS, COLUMNS = 24, 16, 6828  # 10.5 MB of float32: the rank 16 adapter of twelve layers
BASE_SHA256 = "ab" * 32
LAYERS_KEY = "FEDMED_BENCHMARK_LAYERS"


def adapter() -> State:
    """A (rank x in) and B (out x rank) of twelve layers, or of LAYERS_KEY in the environment, all numbers drawn: nothing about it
    compresses or repeats."""
    generator = torch.Generator().manual_seed(0)
    state: State = {}
    for layer in range(int(os.environ.get(LAYERS_KEY, TENSORS // 2))):
        state[f"model.layers.{layer}.lora_A.weight"] = torch.randn(ROWS, COLUMNS, generator=generator)
        state[f"model.layers.{layer}.lora_B.weight"] = torch.randn(COLUMNS, ROWS, generator=generator)
    return state


def unscored(state: State) -> Scores:
    """In place of the aggregator's evaluation, which stock Flower has not."""
    del state
    return Scores(1, 0.0, 0.0, 0.0, 0.0, 0.0)


class ReturningTrainer(NoEvaluator):
    """Returns what it was sent."""

    base_name = "benchmark"
    base_sha256 = BASE_SHA256

    def prepare(self, task: TrainTask, payload: memoryview, lot_size: float) -> TrainRound:
        state = decode_state(payload)

        def train_round(should_stop: ShouldStop) -> Trained:
            returned = {name: tensor for name, tensor in state.items() if kind_of(name) in task.returned}
            return Trained(encode_parts(returned, task.dtype), NoisyCounts(lot_size / 2, lot_size))

        return train_round


def make_trainer(folder: SiteFolder, manifest: Manifest, held_out: Manifest | None) -> ReturningTrainer:
    """For `run_daemon`."""
    del folder, manifest, held_out
    return ReturningTrainer()


if __name__ == "__main__":
    run_daemon(load_site(Path(sys.argv[1])), lambda line: print(line, flush=True), make_trainer)
