"""Rounds whose adapters are rounded on the wire: what the sites changed is added to a state that never was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aggregator.rounds.exchange import LocalExchange
from aggregator.rounds.store import RoundStore
from aggregator.rounds.strategy import run_federation
from aggregator.watching.events import EventLog
from fedmed.config import load_experiment
from fedmed.messages import TrainTask, decode, encode, sha256_hex
from fedmed.metrics.scores import Scores
from fedmed.models.encoding import decode_state, encode_change
from fedmed.wire.fake_site import FakeSite

STEP = {"m.lora_A.weight": torch.zeros(2, 3), "m.lora_B.weight": 1e-4 * torch.eye(4, 2)}
ROUNDS = 4


def site(name: str, dtype: str) -> Callable[[bytes], bytes]:
    """A site that moves what it receives by STEP, and keeps nothing of the rounding's loss."""
    fake = FakeSite(name, 100)

    def answer(frame: bytes) -> bytes:
        task, payload = decode(frame)
        if not isinstance(task, TrainTask):
            return fake.handle(frame)
        received = decode_state(payload, dtype)
        trained = {key: value + STEP[key] for key, value in received.items()}
        return encode(fake._result(task, sha256_hex(frame)), encode_change(received, trained, {}, dtype)[0])

    return answer


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_small_changes_arrive_and_what_nobody_changed_keeps_its_bits(tmp_path: Path, dtype: str) -> None:
    fixed = ["privacy.noise_multiplier=1.0", "federation.norm_bound=100", "partition.sites=[north,harbour,valley]"]
    experiment = load_experiment("demo", [*fixed, f"training.rounds={ROUNDS}", f"federation.wire_dtype={dtype}"])
    start = {"m.lora_A.weight": torch.linspace(1, 2, 6).reshape(2, 3), "m.lora_B.weight": torch.zeros(4, 2)}
    store, events = RoundStore(tmp_path / "rounds"), EventLog(tmp_path / "events.jsonl")
    exchange = LocalExchange({name: site(name, dtype) for name in experiment.partition.sites})
    scores = Scores(10, 0.5, None, None, 0.5, 0.5)
    run_federation(experiment, exchange, store, lambda state: scores, events, dict(start), "b" * 64)
    last = store.state(ROUNDS)
    assert [record.left_out for record in store.records()] == [{}] * (ROUNDS + 1)
    assert torch.equal(last["m.lora_A.weight"], start["m.lora_A.weight"])
    torch.testing.assert_close(last["m.lora_B.weight"], ROUNDS * STEP["m.lora_B.weight"], rtol=0.02, atol=1e-7)
