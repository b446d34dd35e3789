"""What a person sees while a run goes on: one JSON object a line in the run's events.jsonl, written by the ServerApp and,
about the ServerApp itself, by `fedmed run` and `resume`.

    >>> EventLog(path).emit("joined", site="north", num_patients=600)     # doctest: +SKIP
    >>> read_events(path)                                                 # doctest: +SKIP
    [{'time': 1750000000.0, 'kind': 'joined', 'site': 'north', 'num_patients': 600}]

| kind            | fields                                     | when                                  |
| --------------- | ------------------------------------------ | ------------------------------------- |
| waiting         | sites, expected, quorum                    | sites that have joined so far changed |
| joined          | site, num_patients                         | a site answered and takes part        |
| zero_shot       | accuracy                                   | before any training                   |
| round_started   | round, rounds, sites, deadline_s, stage    | the task goes out                     |
| reply           | round, site, epsilon, seconds              | a site's result was folded in         |
| offline, online | round, site                                | a site went, came: within ten seconds |
| waiting_for     | round, sites, offline, left_s              | the round has been quiet for a while  |
| late            | round, site                                | an answer after its round is dropped  |
| bounded         | round, site, norm, bound                   | a site's update was scaled down       |
| left_out        | round, site, reason                        | a site takes no part in this round    |
| warning         | round, message                             | once a round: what a person must mend |
| round_committed | round, accuracy, replies, skipped, seconds | the round is on disk                  |
| judged          | round, stage, verdict                      | with an earlier adapter: see stages   |
| evaluation_started | round, sites, deadline_s                | the sites are asked for held-out scores |
| evaluated       | round, scores, replies                     | what they answered is on disk         |
| interrupted     | message                                    | the server app lost its SuperLink     |
| restarting      | message, wait_s, attempt, limit            | the server app is gone and comes back |
| resumed         | round, rounds                              | a restarted run goes on after `round` |
| finished        | ------------------------------------------ | rounds and merged model are on disk   |
| failed          | message, hint                              | the run ended early                   |
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = frozenset(
    {
        "waiting",
        "joined",
        "zero_shot",
        "round_started",
        "reply",
        "offline",
        "online",
        "waiting_for",
        "late",
        "bounded",
        "left_out",
        "warning",
        "round_committed",
        "judged",
        "evaluation_started",
        "evaluated",
        "interrupted",
        "restarting",
        "resumed",
        "finished",
        "failed",
    }
)
LAST_KINDS = frozenset({"finished", "failed"})


class EventLog:
    """Appends events to a file: each is one write to its end, so that several processes may write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            with path.open("a", encoding="utf-8") as file:  # the last writer died in the middle of a line
                file.write("\n")

    def emit(self, kind: str, **fields: Any) -> None:
        """One event, with the time in seconds since 1970. Raises ValueError for a kind that is not in the table."""
        if kind not in KINDS:
            raise ValueError(f"event kind {kind!r}: expected one of {sorted(KINDS)}")
        line = json.dumps({"time": time.time(), "kind": kind, **fields}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def printable(text: str) -> str:
    """What a site said, fit for a terminal and a page: no control character, no lone surrogate, at most 500 characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:500])


class EventReader:
    """Reads a growing event file from where the last call stopped; half a line is left for the next call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """The events since the last call; none while the file does not exist."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                if event := _parse(line):
                    yield event


def _parse(line: bytes) -> dict[str, Any] | None:
    """The event, or None for the rest of a line whose writer died."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and event.get("kind") in KINDS else None


def read_events(path: Path) -> list[dict[str, Any]]:
    """All whole events of a file, oldest first; empty when there is no file."""
    return list(EventReader(path).new())
