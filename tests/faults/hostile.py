"""A site that speaks the wire contract and answers with what it should not: one behaviour a round.

    python -m tests.faults.hostile NAME SOCKET honest,nan,outlier

Behind a real node it is what a broken or dishonest hospital would be: `MISDEEDS` are the behaviours.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from safetensors.numpy import load, save

from fedmed.messages import PROTOCOL, TrainResult, TrainTask, decode, encode
from fedmed.wire.fake_site import FakeSite, serve

Tensors = dict[str, np.ndarray]
HONEST_STEP = 0.001


def tensors_with(change: Callable[[Tensors], Tensors]) -> Callable[[TrainResult, Tensors], bytes]:
    return lambda result, tensors: encode(result, save(change(dict(tensors))))


def result_with(**changes: object) -> Callable[[TrainResult, Tensors], bytes]:
    return lambda result, tensors: encode(replace(result, **changes), save(tensors))  # type: ignore[arg-type]


def first(tensors: Tensors, change: Callable[[np.ndarray], np.ndarray]) -> Tensors:
    """The first tensor changed."""
    key = sorted(tensors)[0]
    return {**tensors, key: np.ascontiguousarray(change(tensors[key]))}


def with_number(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(tensor: np.ndarray) -> np.ndarray:
        changed = tensor.copy()
        changed.flat[0] = value
        return changed

    return change


def another_rank(tensors: Tensors) -> Tensors:
    """One more row of each A, one more column of each B."""
    return {
        key: np.concatenate([value, value[:1] if "lora_A" in key else value[:, :1]], axis=0 if "lora_A" in key else 1)
        for key, value in tensors.items()
    }


def damaged(result: TrainResult, tensors: Tensors) -> bytes:
    frame = bytearray(encode(result, save(tensors)))
    frame[-1] ^= 1
    return bytes(frame)


def other_protocol(result: TrainResult, tensors: Tensors) -> bytes:
    from tests.faults.cases_wire import of_version

    return of_version(encode(result, save(tensors)), PROTOCOL - 1)


MISDEEDS: dict[str, Callable[[TrainResult, Tensors], bytes]] = {
    "honest": result_with(),
    "nan": tensors_with(lambda tensors: first(tensors, with_number(float("nan")))),
    "infinity": tensors_with(lambda tensors: first(tensors, with_number(float("-inf")))),
    "outlier": tensors_with(lambda tensors: {key: value + 10_000 * HONEST_STEP for key, value in tensors.items()}),
    "sign flip": tensors_with(lambda tensors: {key: value - 101 * HONEST_STEP for key, value in tensors.items()}),
    "missing key": tensors_with(lambda tensors: dict(list(tensors.items())[1:])),
    "unknown key": tensors_with(lambda tensors: {**tensors, "model.more.lora_A.weight": np.ones((2, 3), np.float32)}),
    "shape": tensors_with(lambda tensors: first(tensors, lambda value: value.T)),
    "rank": tensors_with(another_rank),
    "dtype": tensors_with(lambda tensors: first(tensors, lambda value: value.astype(np.float64))),
    "no patients": result_with(num_patients=0),
    "negative patients": result_with(num_patients=-5),
    "absurd patients": result_with(num_patients=10**9),
    "too large": tensors_with(lambda tensors: first(tensors, lambda value: np.zeros((4096, 4096), np.float32))),
    "damaged": damaged,
    "pickle": lambda result, tensors: encode(result, pickle.dumps(tensors)),
    "other protocol": other_protocol,
    "other name": result_with(site="north"),
    "other round": result_with(round=1),
    "fewer steps": result_with(steps=0),
    "long fingerprint": result_with(dataset_fingerprint="x" * 100_000),
    "negative epsilon": result_with(epsilon_total=-0.5),
}


@dataclass
class HostileSite(FakeSite):
    """One behaviour a round; `again` sends the answer of the round before."""

    script: tuple[str, ...] = ()
    last: bytes = b""

    def handle(self, frame: bytes) -> bytes:
        task = decode(frame)[0]
        answer = super().handle(frame)
        if not isinstance(task, TrainTask):
            return answer
        behaviour = self.script[min(task.round, len(self.script)) - 1]
        if behaviour == "again":
            return self.last
        result, payload = decode(answer)
        assert isinstance(result, TrainResult)
        self.last = MISDEEDS[behaviour](result, load(bytes(payload)))
        return self.last


def main() -> None:
    name, socket, script = sys.argv[1:]
    serve(HostileSite(name, shift=HONEST_STEP, script=tuple(script.split(","))), socket)


if __name__ == "__main__":
    main()
