"""What a site keeps for itself from round to round of a run, in step with the results that it gave: its own adapter.

    trained round -> put aside -> its result is stored -> kept/RUN/ROUND.safetensors -> the next round's start

A round counts from the moment its result is stored (hospital_client/results.py), for the aggregator and here alike:

| what happens                                       | the next round starts from                                    |
| -------------------------------------------------- | ------------------------------------------------------------- |
| the round's result is stored                       | this round's tensors                                          |
| killed, or failed, before the result is stored     | the round before: what was put aside is thrown away           |
| killed between storing the result and taking over  | this round's: taken over when the site starts, or resends     |
| the same task again                                | (nothing is trained; nothing moves)                           |
| another task for the same round, or an earlier one | the last round before it: the consortium has gone back        |
| first round of a run, or none was trained here     | None: the tensors are drawn from the public seed              |

Files are of mode 0600, folders 0700; the last two rounds of a run stay, until a person deletes the run's folder. All of
it came out of the accounted mechanism (docs/privacy.md, "Personal tensors"). It never leaves the site.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedmed.files import sync_folder, write_atomic

ROUNDS = 2
_ENDING = ".safetensors"
_ASIDE = ".aside"


@dataclass(frozen=True, slots=True)
class Kept:
    """Of one round: the run's name as the policy let it through, the round, and safetensors bytes."""

    run: str
    round: int
    tensors: bytes


class KeptStore:
    """The folder `kept`. Made when the first round has something to keep."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put_aside(self, kept: Kept, task_sha256: str) -> None:
        """Writes a round's tensors, durable and of no effect yet. Raises OSError."""
        for folder in (self._folder, self._folder / kept.run):
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)
        write_atomic(self._folder / kept.run / f"{kept.round}.{task_sha256}{_ASIDE}", kept.tensors)

    def take_over(self, task_sha256: str) -> None:
        """What was put aside for a task is the run's newest from here on. Nothing, where nothing was put aside."""
        for path in self._folder.glob(f"*/*.{task_sha256}{_ASIDE}"):
            os.replace(path, path.with_name(path.name.split(".")[0] + _ENDING))
            self._prune(path.parent, int(path.name.split(".")[0]))
            sync_folder(path.parent)

    def _prune(self, folder: Path, newest: int) -> None:
        """Leaves the last rounds up to `newest`: later ones are of what the consortium has gone back behind."""
        rounds = self._rounds(folder)
        stay = sorted(number for number in rounds if number <= newest)[-ROUNDS:]
        for number in rounds.keys() - set(stay):
            rounds[number].unlink(missing_ok=True)

    def settle(self, is_stored: Callable[[str], bool]) -> None:
        """After a start: takes over what belongs to a stored result, and throws away what does not."""
        for path in self._folder.glob("*/*.part"):
            path.unlink(missing_ok=True)
        for path in self._folder.glob(f"*/*{_ASIDE}"):
            task_sha256 = path.name.removesuffix(_ASIDE).split(".")[-1]
            if is_stored(task_sha256):
                self.take_over(task_sha256)
            else:
                path.unlink(missing_ok=True)

    def before(self, run: str, number: int) -> Path | None:
        """The file that round `number` of a run starts from: that of the last round before it."""
        rounds = self._rounds(self._folder / run)
        earlier = [own for own in rounds if own < number]
        return rounds[max(earlier)] if earlier else None

    def newest(self, run: str) -> Path | None:
        """The file of a run's last round here."""
        return self.before(run, sys.maxsize) if run in self.runs() else None

    def runs(self) -> list[str]:
        """Names of the runs of which something is kept."""
        return sorted({path.parent.name for path in self._folder.glob(f"*/*{_ENDING}")})

    @staticmethod
    def _rounds(folder: Path) -> dict[int, Path]:
        return {int(path.stem): path for path in folder.glob(f"*{_ENDING}") if path.stem.isdecimal()}
