"""The connector: takes frames from the consortium's SuperLink to the site daemon, and the answers back. Runs no foreign code.

    SuperLink --gRPC--> connector --unix socket--> site daemon --> connector --> SuperLink

    Connector(Node("127.0.0.1:9092"), Path("/run/fedmed/north.sock"), say=print).run(stop)

It does what flower-supernode and the relay (app.py) do together, in one process that stays: no app is fetched, unpacked or
started. A message that is no frame gets the relay's Refusal.

| what happens                   | what the connector does                       | what the consortium sees              |
| ------------------------------ | --------------------------------------------- | ------------------------------------- |
| a message                      | hands it over in a thread of its own          | the daemon's answer, or a Refusal     |
| the daemon is gone for GRACE_S | leaves, and joins again when it answers       | the site is gone, at once             |
| SIGTERM, SIGINT                | leaves and ends                               | the site is gone, at once             |
| killed, or the network is cut  |                                               | the site is gone after two heartbeats |
| the SuperLink does not answer  | tries again, after 10 s at the latest         | the site again, and its answer        |
| the SuperLink was started anew | registers again                               | a new node of the same site           |
| certificate, key, clock wrong  | says which, and tries again, after up to 60 s | a refused key, or nothing             |

One line in the log for each change of state, however often something was tried.
"""

from __future__ import annotations

import logging
import random
import re
import socket as sockets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fedmed.backoff import Backoff, Waits
from fedmed.errors import FedMedError, WireError
from fedmed.messages import encode
from fedmed.wire.record import pack, release
from hospital_client.app import SOCKET_KEY, answer
from hospital_client.fleet import Delivery, Node
from hospital_client.link import Forgotten, NotAdmitted
from hospital_client.release import relay_refusal

log = logging.getLogger("fedmed.connect")
SHORTEST_S, LONGEST_S, SHARE = 0.1, 1.0, 0.05
GRACE_S = 3.0
LOOK_S = 1.0
# A description may be asked for while a round trains, and another run may ask in between.
AT_ONCE = 4


class Connector:
    """The loop.

    Args:
        node: of the site.
        socket: the site daemon's.
        say: told of each change of state, as (state, text): connected, offline, away, forgotten, refused, stopped.
        look_into: finds out more about why the SuperLink does not admit the site.
    """

    def __init__(
        self,
        node: Node,
        socket: Path,
        say: Callable[[str, str], None],
        look_into: Callable[[FedMedError], FedMedError] = lambda error: error,
    ) -> None:
        self._node, self._socket, self._say, self._look_into = node, socket, say, look_into
        self._state = ""
        self._away, self._refused = Waits(Backoff(0.2, 10.0)), Waits(Backoff(1.0, 60.0))
        self._daemon = Watch(socket)
        self._busy = threading.Semaphore(AT_ONCE)
        self._last_message = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Returns when `stop` is set, after telling the SuperLink that the site leaves."""
        while not stop.wait(self._step()):
            pass
        self._node.leave(for_good=True)
        self._node.close()
        self._tell("stopped", "left the federation")

    def _step(self) -> float:
        """One turn of the loop; returns how long to wait until the next, in seconds."""
        if not self._daemon.there():
            self._node.leave(for_good=False)
            self._tell("offline", f"offline: the site daemon does not answer on {self._socket}; waiting for it")
            return LOOK_S
        try:
            if not self._node.joined:
                self._node.join()
            self._node.keep_alive()
            self._take()
        except Forgotten as error:
            self._node.forget()
            self._tell("forgotten", f"{error.message}: registering again")
            return self._away.next_s()
        except NotAdmitted as error:
            found = self._look_into(error)
            # A reason may hold the time of day: the same one a minute later is no other state.
            self._tell(f"refused {re.sub('[0-9]+', '', found.message)}", f"not admitted: {found.message}; {found.hint}")
            return self._refused.next_s()
        except FedMedError as error:
            self._tell("away", f"{error.message}; trying again")
            return self._away.next_s()
        self._away.reset()
        self._refused.reset()
        self._tell("connected", f"connected as node {self._node.node_id}")
        return self._pause_s()

    def _pause_s(self) -> float:
        """Rounds follow each other closely or not at all: who has waited for a minute loses little by a second more."""
        idle_s = time.monotonic() - self._last_message
        return min(max(SHARE * idle_s, SHORTEST_S), LONGEST_S) * random.uniform(0.8, 1.2)  # noqa: S311

    def _take(self) -> None:
        """Takes a message, if there is one and a thread for it."""
        if not self._busy.acquire(blocking=False):
            return
        delivery = None
        try:
            delivery = self._node.next_message()
        finally:
            if delivery is None:
                self._busy.release()
        if delivery is not None:
            threading.Thread(target=self._handle, args=(delivery,), name="message", daemon=True).start()

    def _handle(self, delivery: Delivery) -> None:
        try:
            with delivery:
                self._hand_over(delivery)
        except FedMedError as error:
            log.warning("a message could not be answered: %s", error.message)
        except Exception as error:  # noqa: BLE001  a stranger's message must not end the connector
            log.error("a message could not be answered: %s", type(error).__name__)
        finally:
            self._last_message = time.monotonic()
            self._busy.release()

    def _hand_over(self, delivery: Delivery) -> None:
        try:
            frame = answer(delivery.fetch(), {SOCKET_KEY: str(self._socket)}, delivery.left_s)
        except WireError as error:
            frame = encode(relay_refusal(b"", error, retry=False, socket=str(self._socket)))
        content = pack(frame)
        try:
            delivery.reply(content)
        finally:
            release(content)  # before the next message is there

    def _tell(self, state: str, text: str) -> None:
        if state != self._state:
            self._state = state
            self._say(state.split()[0], text)


class Watch:
    """Whether the site daemon listens on its socket, looked at every LOOK_S. A short absence, as of a restart, is not told."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)
        self._looked = float("-inf")
        self._answered = float("-inf")

    def there(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            if listens(self._socket):
                self._answered = now
        return now - self._answered < GRACE_S


def listens(path: str) -> bool:
    """Whether somebody takes a connection on the unix socket."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(LOOK_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
