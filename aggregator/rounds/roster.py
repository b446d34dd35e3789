"""Who takes part: which connected node speaks for which site, found out by asking each new node once.

    connected nodes -> DescribeTask -> SiteInfo -> {node: site}

| what happens                                     | what becomes of the node                |
| ------------------------------------------------ | --------------------------------------- |
| a name that the experiment does not list         | left out for good, named in an event    |
| a name that its node key was not admitted for    | left out, named; asked again later      |
| a second node with the name of a connected one   | left out, asked again later             |
| the same, the connected one owes an answer       | takes its place: the site was restarted |
| refused, `retry` (the daemon is not up yet)      | asked again later                       |
| no answer within ANSWER_S, an error              | asked again later                       |
| a damaged frame                                  | asked again later                       |
| fewer sites than the quorum after join_timeout_s | FederationError naming who is missing   |
"""

from __future__ import annotations

import time
from collections.abc import Callable

from aggregator.joining.admitted import require_own_name, why_absent
from aggregator.rounds.exchange import Exchange, Reply
from aggregator.watching.events import EventLog, printable
from fedmed.backoff import Backoff, Waits
from fedmed.config import Experiment
from fedmed.errors import FederationError, FedMedError
from fedmed.messages import DescribeTask, Refusal, SiteInfo, decode, encode

POLL_S = 0.2
# New nodes are asked together: an exchange costs seconds, and sites of one federation are often started together.
SETTLE_S = 3.0
# A daemon says who it is at once, also while it trains. The round waits for it, so a node that says nothing is not waited for long.
ANSWER_S = 20.0
# A node that gave no good answer is asked again, later each time and not all at once.
ASK_AGAIN = Backoff(base_s=5.0, cap_s=60.0)


class Roster:
    """The sites of a run, by node. `sites` changes as nodes come and go."""

    def __init__(self, experiment: Experiment, run: str, exchange: Exchange, events: EventLog) -> None:
        self._expected = experiment.partition.sites
        self._federation = experiment.federation
        self._frame = encode(DescribeTask(run=run))
        self._run = run
        self._exchange = exchange
        self._events = events
        self._waits: dict[int, Waits] = {}
        self._ask_at: dict[int, float] = {}  # node -> when to ask it (again), as time.monotonic()
        self._told: set[tuple[str, str]] = set()
        self.sites: dict[int, SiteInfo] = {}

    def join(self) -> None:
        """Waits until every site has joined, or join_timeout_s is over and the quorum has.

        Raises:
            FederationError: below the quorum after join_timeout_s.
        """
        self._wait(lambda: len(self.sites) == len(self._expected), self._federation.join_timeout_s)
        if len(self.sites) < self._federation.quorum:
            raise FederationError(
                f"{len(self.sites)} sites joined within {self._federation.join_timeout_s:g} s, expected at least "
                f"{self._federation.quorum}; missing: {', '.join(self.missing())}",
                "start the missing sites' daemons and connectors, or raise federation.join_timeout_s",
            )

    def ready(self) -> dict[int, str]:
        """node -> site name of those that can be given a task now, new nodes included."""
        self._ask(self._new_nodes())
        return self._connected()

    def wait_for_quorum(self, timeout_s: float) -> dict[int, str]:
        """As `ready`, after waiting for the quorum; fewer sites when it does not come together in time."""
        self._wait(lambda: len(self._connected()) >= self._federation.quorum, timeout_s)
        return self._connected()

    def missing(self) -> list[str]:
        """Expected sites that have never joined, each with what the register says against it."""
        joined = {info.site for info in self.sites.values()}
        return [
            f"{site} ({why})" if (why := why_absent(site)) else site for site in self._expected if site not in joined
        ]

    def _connected(self) -> dict[int, str]:
        return {node: self.sites[node].site for node in self._exchange.nodes() if node in self.sites}

    def _wait(self, done: Callable[[], bool], timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        shown: list[str] | None = None
        settled = time.monotonic() + SETTLE_S
        while not done():
            if (names := sorted(self._connected().values())) != shown:
                shown = names
                self._events.emit("waiting", sites=names, expected=list(self._expected), quorum=self._federation.quorum)
            new, now = self._new_nodes(), time.monotonic()
            if not new:
                settled = now + SETTLE_S
            if new and (now >= min(settled, end) or len(new) + len(shown) >= len(self._expected)):
                self._ask(new)
            elif now >= end:
                return
            else:
                time.sleep(POLL_S)

    def _new_nodes(self) -> list[int]:
        now = time.monotonic()
        return [
            node for node in self._exchange.nodes() if node not in self.sites and self._ask_at.get(node, 0.0) <= now
        ]

    def _ask(self, nodes: list[int]) -> None:
        if not nodes:
            return
        for reply in self._exchange.send(
            dict.fromkeys(nodes, self._frame), min(ANSWER_S, self._federation.join_timeout_s)
        ):
            try:
                self._admit(reply)
            except FedMedError as error:
                self._ask_at.setdefault(reply.node, self._again(reply.node))
                self._tell(f"node {reply.node}", error.message)

    def _admit(self, reply: Reply) -> None:
        """Takes the node in, or raises FedMedError with the reason; sets when to ask it again."""
        self._ask_at[reply.node] = self._again(reply.node)
        if reply.frame is None:
            raise FederationError(reply.error)
        info = decode(reply.frame)[0]
        if isinstance(info, Refusal):
            raise FederationError(f"refused ({info.code}): {info.message}")
        if not isinstance(info, SiteInfo) or info.run != self._run:
            raise FederationError(f"answered with {info.type}, expected site_info of this run")
        if info.site not in self._expected:
            self._ask_at[reply.node] = float("inf")
            raise FederationError(f"calls itself {info.site[:80]!r}, which is not one of partition.sites")
        require_own_name(reply.node, info.site)
        self._replace(reply.node, info)
        self._events.emit("joined", site=info.site, num_patients=info.num_patients)

    def _again(self, node: int) -> float:
        """When to ask the node again, as time.monotonic()."""
        return time.monotonic() + self._waits.setdefault(node, Waits(ASK_AGAIN)).next_s()

    def _replace(self, node: int, info: SiteInfo) -> None:
        holder = next((old for old, known in self.sites.items() if known.site == info.site), None)
        if holder is not None and holder in self._exchange.nodes():
            raise FederationError(f"calls itself {info.site}, and so does another connected node")
        if holder is not None:
            del self.sites[holder]
        self.sites[node] = info

    def _tell(self, site: str, reason: str) -> None:
        """One event per node and reason, however often it is asked again."""
        reason = printable(reason)
        if (site, reason) not in self._told:
            self._told.add((site, reason))
            self._events.emit("left_out", round=0, site=site, reason=reason)
