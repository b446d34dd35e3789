"""The hospital's daemon as a process, all of it the product's but the trainer: no torch, so it is up within a second.

    python -m tests.faults.stand_in SITE_FOLDER

Its trainer sends the adapter back as it came. Beside its socket NAME.sock it writes `begun` and `done` to NAME.trainings, and
between the two it waits while NAME.hold is there: long enough for a fault to be made in the middle of a round. A number in that
file is the first round that waits. An evaluation of held-out patients waits while NAME.hold_evaluation is there; its scores are
all 1/2.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedmed.command_line import print_error
from fedmed.data.manifest import Manifest
from fedmed.errors import FederationError, FedMedError
from fedmed.messages import EvaluateTask, TrainTask
from fedmed.privacy.patient_scores import NoisyScores, groups_of
from hospital_client.daemon import run_daemon
from hospital_client.held_out import Score
from hospital_client.release import Trained
from hospital_client.settings import SiteFolder, load_site
from hospital_client.site import ShouldStop, TrainRound


class HoldingTrainer:
    """Waits in the middle of a round as long as a file is there. Its base model is the first that the policy allows."""

    base_name = "fedmed-tiny"

    def __init__(self, folder: SiteFolder, held_out: Manifest | None) -> None:
        self.base_sha256 = folder.policy.base_models[0]
        self._notes, self._hold = folder.socket.with_suffix(".trainings"), folder.socket.with_suffix(".hold")
        self._hold_evaluation = folder.socket.with_suffix(".hold_evaluation")
        self._held_out = 0 if held_out is None else held_out.num_patients

    def prepare(self, task: TrainTask, payload: memoryview, lot_size: float) -> TrainRound:
        incoming = bytes(payload)

        def train_round(should_stop: ShouldStop) -> Trained:
            self._note("begun")
            _wait(lambda: self._holds(task.round), should_stop)
            self._note("done")
            return Trained(incoming)

        return train_round

    def prepare_evaluation(self, task: EvaluateTask, payload: memoryview) -> Score:
        del payload
        patients = float(self._held_out)
        scores = NoisyScores((patients / 2,) * len(task.scores), (patients,) * len(groups_of(task.scores)))

        def score(should_stop: ShouldStop) -> NoisyScores:
            _wait(self._hold_evaluation.exists, should_stop)
            return scores

        return score

    def _holds(self, number: int) -> bool:
        try:
            return number >= int(self._hold.read_text() or 0)
        except FileNotFoundError:
            return False

    def _note(self, word: str) -> None:
        with self._notes.open("a") as file:
            file.write(word + "\n")


def _wait(holds: Callable[[], bool], should_stop: ShouldStop) -> None:
    while holds():
        if should_stop():
            raise FederationError("the round was stopped before its last step")
        time.sleep(0.01)


def make_trainer(folder: SiteFolder, manifest: Manifest, held_out: Manifest | None) -> HoldingTrainer:
    return HoldingTrainer(folder, held_out)


def main() -> None:
    try:
        run_daemon(load_site(Path(sys.argv[1])), lambda text: print(text, flush=True), make_trainer)
    except FedMedError as error:
        print_error(error)
        sys.exit(error.exit_code)
    os._exit(0)


if __name__ == "__main__":
    main()
