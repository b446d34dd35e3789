"""Backoff with full jitter: bounded, spread out, repeatable with a seed, and counted anew after progress."""

import random

import pytest

from fedmed.backoff import Backoff, Retries, Waits

BACKOFF = Backoff(base_s=2.0, cap_s=30.0)


@pytest.mark.parametrize("attempt", [1, 2, 3, 10, 100, 5000])
def test_no_delay_leaves_its_bounds(attempt: int) -> None:
    draws = random.Random(attempt)
    delays = [BACKOFF.delay(attempt, draws.random()) for _ in range(500)]
    most = min(30.0, 2.0 * 2.0 ** min(attempt - 1, 60))
    assert min(delays) >= 0.0 and max(delays) <= most
    assert abs(sum(delays) / len(delays) - most / 2) < most / 10  # drawn evenly, so that callers come back spread out


@pytest.mark.parametrize(("attempt", "draw"), [(0, 0.5), (-1, 0.5), (1, -0.1), (1, 1.1)])
def test_nonsense_is_refused(attempt: int, draw: float) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        BACKOFF.delay(attempt, draw)


def test_so_many_failures_in_a_row_and_no_more() -> None:
    retries = Retries(3, BACKOFF, random.Random(0))
    assert [retries.failed() is not None for _ in range(5)] == [True, True, True, False, False]
    retries.progress()
    assert retries.count == 0 and retries.failed() is not None


def test_the_same_seed_waits_the_same() -> None:
    first, second = (Retries(5, BACKOFF, random.Random(7)) for _ in range(2))
    assert [first.failed() for _ in range(5)] == [second.failed() for _ in range(5)]


def test_waits_double_up_to_the_cap_and_begin_anew() -> None:
    waits = Waits(Backoff(1.0, 4.0))
    taken = [waits.next_s() for _ in range(6)]
    assert [0.5 <= taken[0] <= 1.0, 1.0 <= taken[1] <= 2.0] == [True, True]
    assert all(2.0 <= wait <= 4.0 for wait in taken[2:])
    waits.reset()
    assert waits.next_s() <= 1.0
