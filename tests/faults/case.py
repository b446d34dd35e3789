"""One fault: a sentence with gaps, what must stand in the gaps, and a function that makes the fault and says what did.

    @case(9, "two daemons on one ledger", "the second ends with status {exit} and says: {says}", exit=8, says="...")
    def two_daemons(lab: Lab) -> Facts: ...          # -> {"exit": 8, "says": "..."}

| what happens                                    | the outcome                                            |
| ----------------------------------------------- | ------------------------------------------------------ |
| every fact is the expected one, and none is new | passed                                                 |
| a fact differs, is missing or was not asked for | failed: the two sentences differ, or the fact is named |
| the case raises, or cannot run on this machine  | failed: `seen` says why; nothing is ever skipped       |
| it takes longer than its limit                  | failed; what it started is ended all the same          |
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.lab import Lab

Facts = Mapping[str, Any]
LIMIT_S = 600.0  # on a machine that does other things; docs/faults.md says how long each took


@dataclass(frozen=True, slots=True)
class Case:
    """A fault of docs/faults.md. `part` tells several cases of one number apart; `quick`: takes less than 5 s."""

    number: int
    part: str
    fault: str
    sentence: str
    expected: Facts
    make: Callable[[Lab], Facts]
    quick: bool
    limit_s: float

    @property
    def name(self) -> str:
        """`8`, or `8 truncated` where the number has several."""
        return f"{self.number} {self.part}".rstrip()

    @property
    def expects(self) -> str:
        return self.sentence.format(**self.expected)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case. `seen` is the case's sentence with what was found in its gaps, or why there is none."""

    case: Case
    seen: str
    passed: bool
    seconds: float


CASES: list[Case] = []


def case(
    number: int,
    fault: str,
    sentence: str,
    /,
    *,
    part: str = "",
    quick: bool = False,
    limit_s: float = LIMIT_S,
    **expected: Any,
) -> Callable[[Callable[[Lab], Facts]], Callable[[Lab], Facts]]:
    """Adds a case to the table. Raises ValueError for one that is there already."""

    def add(make: Callable[[Lab], Facts]) -> Callable[[Lab], Facts]:
        made = Case(number, part, fault, sentence, expected, make, quick, limit_s)
        if made.name in {other.name for other in CASES}:
            raise ValueError(f"case {made.name} is there twice")
        made.expects  # noqa: B018  a gap without an expected fact is an error at once
        CASES.append(made)
        return make

    return add


def run_case(item: Case, lab: Lab) -> Outcome:
    """Makes the fault and compares. Never raises for a fault of the case."""
    begin = time.monotonic()
    try:
        with time_limit(item.limit_s):
            found = dict(item.make(lab))
        seen, passed = compare(item, found)
    except Exception as error:  # noqa: BLE001  a case that cannot run is a failed case
        seen, passed = f"could not run: {describe(error)}", False
    return Outcome(item, seen, passed, time.monotonic() - begin)


def compare(item: Case, found: Facts) -> tuple[str, bool]:
    """The sentence as seen, and whether every fact is the expected one."""
    if missing := sorted(set(item.expected) - set(found)):
        return f"no word of {', '.join(missing)}; found {dict(found)}", False
    extra = {key: value for key, value in found.items() if key not in item.expected}
    seen = item.sentence.format(**found) + (f" (and {extra}, not asked for)" if extra else "")
    return seen, dict(found) == dict(item.expected)


def describe(error: BaseException) -> str:
    """One line with where in the suite it arose."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/faults/" in frame.filename]
    place = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the main thread when the block takes longer; without effect in other threads."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def out_of_time(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    old = signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
