"""A site that trains nothing and owns no data: for tests of the federation, of the network, and for measuring overhead.

    >>> site = FakeSite("north", num_patients=30)
    >>> decode(site.handle(encode(DescribeTask(run="r1"))))[0].site
    'north'

It answers a TrainTask with the tensors it was sent (those that the task calls trainable), each number `shift` larger, and a
task that asks for evaluation counts or for scores of held-out patients with those of `accuracy`, without noise.
As a process of its own it stands in for a site daemon on a unix socket; it prints when it is ready and what it gets:

    python -m fedmed.wire.fake_site NAME SOCKET [--shift X] [--delay SECONDS] [--patients N]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass

import grpc
from safetensors.numpy import load, save

from fedmed.messages import (
    DescribeTask,
    EvaluateResult,
    EvaluateTask,
    Refusal,
    SiteInfo,
    TrainResult,
    TrainTask,
    decode,
    encode,
    sha256_hex,
)
from fedmed.models.kinds import kind_of
from fedmed.privacy.patient_scores import groups_of
from fedmed.wire import site_pb2, site_pb2_grpc
from fedmed.wire.channel import chunks, join


@dataclass
class FakeSite:
    """A site as a function from frame to frame. `tasks` lists the rounds it was given, in order."""

    name: str
    num_patients: int = 100
    shift: float = 0.0
    delay_s: float = 0.0
    accuracy: float = 0.75

    def __post_init__(self) -> None:
        self.tasks: list[int] = []

    def handle(self, frame: bytes) -> bytes:
        """The reply to a DescribeTask, TrainTask or EvaluateTask; a Refusal to anything else."""
        task, payload = decode(frame)
        if isinstance(task, DescribeTask):
            info = SiteInfo(task.run, self.name, "fake", self.num_patients, "0" * 64, 0.0, 10.0)
            return encode(info)
        if isinstance(task, EvaluateTask):
            return encode(self._evaluated(task, sha256_hex(frame)))
        if not isinstance(task, TrainTask):
            return encode(Refusal("", 0, self.name, "wire", f"a site takes no {task.type} message", False))
        self.tasks.append(task.round)
        time.sleep(self.delay_s)
        return encode(self._result(task, sha256_hex(frame)), self._train(task, payload))

    def _train(self, task: TrainTask, payload: memoryview) -> bytes:
        tensors = {name: value for name, value in load(bytes(payload)).items() if kind_of(name) in task.trainable}
        return save({name: value + value.dtype.type(self.shift) for name, value in tensors.items()})

    def _evaluated(self, task: EvaluateTask, task_sha256: str) -> EvaluateResult:
        patients, groups = float(self.num_patients), groups_of(task.scores)
        sums = (self.accuracy * patients,) * len(task.scores)
        return EvaluateResult(
            task.run, task.round, self.name, task_sha256, task.scores, sums, (patients,) * len(groups)
        )

    def _result(self, task: TrainTask, task_sha256: str) -> TrainResult:
        drawn = task.privacy.sample_rate * self.num_patients if task.privacy.metrics_noise_multiplier else 0.0
        return TrainResult(
            run=task.run,
            round=task.round,
            site=self.name,
            task_sha256=task_sha256,
            num_patients=self.num_patients,
            steps=task.privacy.steps,
            epsilon=0.1 * task.round,
            delta=task.privacy.delta,
            epsilon_total=0.1 * task.round,
            dataset_fingerprint="0" * 64,
            noisy_correct=self.accuracy * drawn,
            noisy_patients=drawn,
        )


class _Servicer(site_pb2_grpc.SiteServicer):
    def __init__(self, site: FakeSite) -> None:
        self._site = site

    def Handle(
        self, request_iterator: Iterator[site_pb2.Chunk], context: grpc.ServicerContext
    ) -> Iterator[site_pb2.Chunk]:
        frame = join(piece.data for piece in request_iterator)
        print(f"{self._site.name} got {decode(frame)[0].type}", flush=True)
        yield from chunks(self._site.handle(frame))


def serve(site: FakeSite, socket_path: str) -> None:
    """Serves `site` on a unix socket until the process is ended."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    site_pb2_grpc.add_SiteServicer_to_server(_Servicer(site), server)
    server.add_insecure_port(f"unix:{socket_path}")
    server.start()
    print(f"{site.name} ready {socket_path}", flush=True)
    server.wait_for_termination()


def main() -> None:
    """The command line of the module's text."""
    parser = argparse.ArgumentParser(description="A site daemon that trains nothing.")
    parser.add_argument("name")
    parser.add_argument("socket")
    parser.add_argument("--shift", type=float, default=0.0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--patients", type=int, default=100)
    arguments = parser.parse_args()
    site = FakeSite(arguments.name, arguments.patients, arguments.shift, arguments.delay)
    serve(site, arguments.socket)


if __name__ == "__main__":
    main()
