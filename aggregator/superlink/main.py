"""Flower's SuperLink with one limit lowered: how often a node may say that it is there. And with hooks.

    python -m aggregator.superlink.main --insecure --fleet-api-type grpc-rere ...     flags and all else as flower-superlink

What a request leaves behind in cycles of references, the adapter's bytes among it, is found once there is as much of it as a
quarter of all objects: what was imported is set aside (`gc.freeze`), so that this is soon.

Flower marks a node offline after twice the heartbeat interval that the node asks for, and refuses intervals below 10 s: it
would take 20 s to see that a site is gone. From MIN_HEARTBEAT_S on, `fedmed-site connect` asks for 3 s.
"""

from __future__ import annotations

import gc
import sys

from flwr.server.superlink.fleet.message_handler import message_handler
from flwr.superlink.cli import flower_superlink

from aggregator.superlink import hooks
from aggregator.superlink.gate import end_with_gate
from fedmed.errors import FederationError
from fedmed.heap import large_blocks_apart

MIN_HEARTBEAT_S = 1
_LIMIT = "HEARTBEAT_MIN_INTERVAL"


def allow_short_heartbeats() -> None:
    """Lowers the limit in this process. Raises FederationError when Flower has none of this name: another release."""
    if not hasattr(message_handler, _LIMIT):
        raise FederationError(
            f"{message_handler.__name__} has no {_LIMIT}, expected Flower 1.39", "install the pinned flwr release"
        )
    setattr(message_handler, _LIMIT, MIN_HEARTBEAT_S)


def main() -> None:
    """Runs the SuperLink until it is ended."""
    try:
        end_with_gate()
        allow_short_heartbeats()
        hooks.install(sys.argv[1:])
    except FederationError as error:
        sys.exit(f"error: {error.message}\n  hint: {error.hint}")
    large_blocks_apart()
    gc.freeze()
    flower_superlink()


if __name__ == "__main__":
    main()
