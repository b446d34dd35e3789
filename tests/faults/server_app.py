"""The consortium's round loop as a process without Flower: `aggregator.app.serve` with the hospitals' sockets as its network.

    python -m tests.faults.server_app RUN_FOLDER north=/tmp/north.sock harbour=/tmp/harbour.sock

For faults of the run's folder, which a network would only make slower. Exits with the error's own code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aggregator.app import serve
from aggregator.rounds.exchange import LocalExchange
from fedmed.errors import FedMedError
from fedmed.wire import channel


def main() -> None:
    run, *sites = sys.argv[1:]
    sockets = dict(site.split("=", 1) for site in sites)
    functions: dict[str, Callable[[bytes], bytes]] = {
        name: partial(channel.handle, socket, timeout_s=60.0) for name, socket in sockets.items()
    }
    try:
        serve(Path(run), LocalExchange(functions))
    except FedMedError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
