"""How Flower's grid waits for a reply that a site is still sending, for as long as the exchange can wait.

    with quick_pulls(left_s=deadline - now):
        replies = grid.pull_messages([message_id])

A site announces its reply first and sends the bytes then. Flower 1.39 looks for them after 1 s, then 2, 4, 8, 10 s, for up to
two hours, whatever the caller's deadline; these are defaults of `pull_objects`, which the grid calls without arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from flwr.superlink.grid import http_grid

from fedmed.errors import FederationError

FIRST_S, LONGEST_S = 0.02, 0.5
_PULL = "pull_objects"


@contextmanager
def quick_pulls(left_s: float) -> Iterator[None]:
    """Inside the block, a reply's bytes are looked for often, and no longer than `left_s`: then Flower makes it an error.

    Not for use from two threads. Raises FederationError when Flower has nothing of this name: another release.
    """
    original = getattr(http_grid, _PULL, None)
    if original is None:
        raise FederationError(f"{http_grid.__name__} has no {_PULL}, expected Flower 1.39", "install the pinned flwr")
    quick = partial(
        original, initial_backoff=FIRST_S, backoff_cap=LONGEST_S, max_time=left_s, max_tries_per_object=None
    )
    setattr(http_grid, _PULL, quick)
    try:
        yield
    finally:
        setattr(http_grid, _PULL, original)
