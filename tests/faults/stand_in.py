"""The hospital's daemon as a process, all of it the product's but the trainer: no torch, so it is up within a second.

    python -m tests.faults.stand_in SITE_FOLDER

Its trainer sends the adapter back as it came. Beside its socket NAME.sock it writes `begun` and `done` to NAME.trainings, and
between the two it waits while NAME.hold is there: long enough for a fault to be made in the middle of a round. A number in that
file is the first round that waits.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from fedmed.command_line import print_error
from fedmed.data.manifest import Manifest
from fedmed.errors import FederationError, FedMedError
from fedmed.messages import TrainTask
from hospital_client.daemon import run_daemon
from hospital_client.fakes import NoEvaluator
from hospital_client.release import Trained
from hospital_client.settings import SiteFolder, load_site
from hospital_client.site import ShouldStop, TrainRound


class HoldingTrainer(NoEvaluator):
    """Waits in the middle of a round as long as a file is there. Its base model is the first that the policy allows."""

    base_name = "fedmed-tiny"

    def __init__(self, folder: SiteFolder) -> None:
        self.base_sha256 = folder.policy.base_models[0]
        self._notes, self._hold = folder.socket.with_suffix(".trainings"), folder.socket.with_suffix(".hold")

    def prepare(self, task: TrainTask, payload: memoryview, lot_size: float) -> TrainRound:
        incoming = bytes(payload)

        def train_round(should_stop: ShouldStop) -> Trained:
            self._note("begun")
            while self._holds(task.round):
                if should_stop():
                    raise FederationError("the round was stopped before its last step")
                time.sleep(0.01)
            self._note("done")
            return Trained(incoming)

        return train_round

    def _holds(self, number: int) -> bool:
        try:
            return number >= int(self._hold.read_text() or 0)
        except FileNotFoundError:
            return False

    def _note(self, word: str) -> None:
        with self._notes.open("a") as file:
            file.write(word + "\n")


def make_trainer(folder: SiteFolder, manifest: Manifest, held_out: Manifest | None) -> HoldingTrainer:
    return HoldingTrainer(folder)


def main() -> None:
    try:
        run_daemon(load_site(Path(sys.argv[1])), lambda text: print(text, flush=True), make_trainer)
    except FedMedError as error:
        print_error(error)
        sys.exit(error.exit_code)
    os._exit(0)


if __name__ == "__main__":
    main()
