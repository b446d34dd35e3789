"""How long to wait before asking again: exponential backoff with full jitter, and a bound on tries without progress.

    >>> delays = [Backoff(base_s=1.0, cap_s=60.0).delay(attempt, 1.0) for attempt in (1, 2, 3, 9)]
    >>> delays
    [1.0, 2.0, 4.0, 60.0]

A delay is drawn evenly from 0 to min(cap, base * 2^(attempt - 1)) seconds, so that many who lost the same server do not all
come back in the same moment (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

| attempt             | longest delay                                            |
| ------------------- | -------------------------------------------------------- |
| 1                   | base_s                                                   |
| n                   | base_s * 2^(n - 1), never above cap_s                    |
| below 1             | ValueError                                               |
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Backoff:
    """The delays of one waiting client. Pure: the draw is an argument.

    Attributes:
        base_s: longest first delay, in seconds.
        cap_s: no delay is longer, in seconds.
    """

    base_s: float
    cap_s: float

    def delay(self, attempt: int, draw: float) -> float:
        """Seconds to wait before attempt `attempt` (from 1) is repeated.

        Args:
            draw: in [0, 1], such as `random.random()`; 1 gives the longest delay.

        Raises:
            ValueError: attempt below 1, or a draw outside [0, 1].
        """
        if attempt < 1 or not 0.0 <= draw <= 1.0:
            raise ValueError(f"attempt={attempt}, draw={draw}: expected at least 1, and 0 to 1")
        # 2^63 is far above any cap, and a float takes no larger exponent than 2^1023.
        return draw * min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 63))


@dataclass(slots=True)
class Waits:
    """The waits of a client that never gives up, each of them half of the longest at the least.

    Attributes:
        count: how often it waited since the last `reset`.
    """

    backoff: Backoff
    count: int = 0

    def next_s(self) -> float:
        """Seconds to wait before the next try."""
        self.count += 1
        return self.backoff.delay(self.count, random.uniform(0.5, 1.0))  # noqa: S311 spreads them out, hides nothing

    def reset(self) -> None:
        """It was reached: the next wait is a first one."""
        self.count = 0


@dataclass(slots=True)
class Retries:
    """Counts failures in a row; progress starts the count anew.

    Attributes:
        limit: so many failures without progress are allowed.
        backoff: the delays between them.
        draws: where the jitter comes from; a seeded one repeats itself.
        count: failures since the last progress.
    """

    limit: int
    backoff: Backoff
    draws: random.Random = field(default_factory=random.Random)
    count: int = 0

    def progress(self) -> None:
        """Something was reached: the next failure is the first one again."""
        self.count = 0

    def failed(self) -> float | None:
        """Seconds to wait before the next try; None when the limit is reached."""
        if self.count >= self.limit:
            return None
        self.count += 1
        return self.backoff.delay(self.count, self.draws.random())
