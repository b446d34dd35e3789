"""A site without torch, for tests and for trying the wire: a trainer that sends the incoming tensors back.

>>> trainer = EchoTrainer()
>>> trainer.prepare(example_task(), memoryview(b"tensors"), lot_size=5.0)(lambda: False).payload
b'tensors'
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmed.errors import FederationError
from fedmed.messages import EvaluateTask, LoraSpec, OptimizerSpec, PrivacySpec, ReleaseSpec, TrainTask
from fedmed.privacy.accounting import PrivacyEvent
from fedmed.privacy.patient_scores import NoisyScores, groups_of
from hospital_client.held_out import Score
from hospital_client.membership import PSEUDONYM_BYTES
from hospital_client.policy import Policy
from hospital_client.release import Trained
from hospital_client.site import Cohort, ShouldStop, TrainRound
from hospital_client.witness import JournalFiles

BASE_SHA256 = "ab" * 32


def linear_epsilon(events: Sequence[PrivacyEvent], delta: float) -> float:
    """A stand-in for PLD accounting that adds up by hand: steps * sample_rate / noise_multiplier."""
    return sum(event.steps * event.sample_rate / event.noise_multiplier for event in events)


def example_cohort(num_patients: int, name: str = "north") -> Cohort:
    """A cohort of patients 0 to `num_patients` - 1: a larger one holds a smaller one's patients."""
    return Cohort(name, frozenset(number.to_bytes(PSEUDONYM_BYTES) for number in range(num_patients)), "f" * 64)


def journal_files(folder: Path, name: str = "ledger.jsonl") -> JournalFiles:
    """A journal in `folder` with its witness in FOLDER.witness."""
    return JournalFiles(folder / name, folder.with_name(f"{folder.name}.witness") / name, b"k" * 32)


def example_task(**changes: Any) -> TrainTask:
    """A task that `fedmed-site init`'s policy allows; keys of its privacy and lora groups may be given directly."""
    privacy = PrivacySpec("dp", 1.0, 0.1, 1.0, records_per_patient=4, steps=10, delta=1e-5)
    lora = LoraSpec(8, 16.0, ("language_model",), ("all-linear",))
    task = TrainTask(
        run="run-1",
        round=1,
        rounds=5,
        config_sha256="cd" * 32,
        base_model="fedmed-tiny",
        base_sha256=BASE_SHA256,
        method="fedavg",
        lora=lora,
        init_seed=0,
        frozen_sha256="",
        trainable=("lora_A", "lora_B"),
        returned=("lora_A", "lora_B"),
        privacy=privacy,
        optimizer=OptimizerSpec("adamw", 1e-3, 0.9, 0.0, keep_state=True),
        dtype="float32",
        precision="float32",
    )
    for part in ("privacy", "lora"):
        names = {field.name for field in dataclasses.fields(getattr(task, part))}
        inner = {key: changes.pop(key) for key in list(changes) if key in names}
        changes.setdefault(part, dataclasses.replace(getattr(task, part), **inner))
    return dataclasses.replace(task, **changes)


def example_evaluation(**changes: Any) -> EvaluateTask:
    """An evaluation that `example_policy(allow_metrics=True)` allows; keys of its privacy may be given directly."""
    privacy = ReleaseSpec("dp", 4.0, 1e-5)
    inner = {key: changes.pop(key) for key in list(changes) if key in {"mode", "noise_multiplier", "delta"}}
    task = EvaluateTask(
        run="run-1",
        round=5,
        config_sha256="cd" * 32,
        base_model="fedmed-tiny",
        base_sha256=BASE_SHA256,
        lora=LoraSpec(8, 16.0, ("language_model",), ("all-linear",)),
        init_seed=0,
        frozen_sha256="",
        personal=(),
        dtype="float32",
        privacy=dataclasses.replace(privacy, **inner),
        scores=("exact_match", "open_recall"),
        max_new_tokens=8,
    )
    return dataclasses.replace(task, **changes)


def example_policy(**changes: Any) -> Policy:
    """A policy that allows `example_task`, with small numbers."""
    values: dict[str, Any] = {
        "base_models": (BASE_SHA256,),
        "methods": ("fedavg", "ffa_lora"),
        "allow_no_privacy": False,
        "allow_insecure_noise": False,
        "allow_metrics": False,
        "max_rank": 64,
        "min_noise_multiplier": 0.5,
        "min_metrics_noise_multiplier": 2.0,
        "epsilon_budget": 3.5,
        "delta": 1e-5,
        "min_patients": 20,
        "patient_count": "rounded",
        "dataset_fingerprint": "cohort",
        "max_sample_rate": 0.5,
        "max_local_steps": 200,
        "max_rounds": 100,
    }
    return Policy(**{**values, **changes})


class NoEvaluator:
    """Scores nobody: for trainers of sites without held-out patients, which are not asked."""

    def prepare_evaluation(self, task: EvaluateTask, payload: memoryview) -> Score:
        del payload
        return lambda should_stop: NoisyScores((0.0,) * len(task.scores), (0.0,) * len(groups_of(task.scores)))


class EchoTrainer(NoEvaluator):
    """Sends the payload back. Notes what it was asked; can fail, and can wait in the middle of a round.

    Args:
        fault: raised when the round is trained.
        prepare_fault: raised when the task is checked, before the data is touched.
        wait: the round goes on until `release` is set, or until it is told to stop.
        kept: what a round leaves at the site.
    """

    base_name = "fedmed-tiny"
    base_sha256 = BASE_SHA256

    def __init__(
        self,
        *,
        fault: Exception | None = None,
        prepare_fault: Exception | None = None,
        wait: bool = False,
        kept: bytes = b"",
    ) -> None:
        self.fault = fault
        self.prepare_fault = prepare_fault
        self.kept = kept
        self.lot_sizes: list[float] = []
        self.rounds_trained = 0
        self.training = threading.Event()
        self.release = threading.Event()
        if not wait:
            self.release.set()

    def prepare(self, task: TrainTask, payload: memoryview, lot_size: float) -> TrainRound:
        if self.prepare_fault is not None:
            raise self.prepare_fault
        self.lot_sizes.append(lot_size)
        incoming = bytes(payload)

        def train_round(should_stop: ShouldStop) -> Trained:
            self.training.set()
            self.rounds_trained += 1
            if self.fault is not None:
                raise self.fault
            while not self.release.wait(0.01):
                if should_stop():
                    raise FederationError("the round was stopped before its last step")
            return Trained(incoming, kept=self.kept)

        return train_round
