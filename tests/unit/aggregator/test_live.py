"""The live view: what the events add up to, plain lines without a terminal, a drawing on one, and the summary."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aggregator.reports.report import build_report
from aggregator.watching.events import KINDS
from aggregator.watching.live import LiveView, plain_line, print_summary
from fedmed.config import load_experiment

EVENTS: list[dict[str, Any]] = [
    {"kind": "waiting", "sites": ["north"], "expected": ["north", "harbour", "valley"], "quorum": 2},
    {"kind": "joined", "site": "north", "num_patients": 900},
    {"kind": "joined", "site": "harbour", "num_patients": 500},
    {"kind": "joined", "site": "valley", "num_patients": 300},
    {"kind": "zero_shot", "accuracy": 0.5},
    {"kind": "round_started", "round": 1, "rounds": 5, "sites": ["north", "harbour", "valley"]},
    {"kind": "offline", "round": 1, "site": "harbour"},
    {"kind": "online", "round": 1, "site": "harbour"},
    {"kind": "reply", "round": 1, "site": "north", "epsilon": 1.25, "seconds": 3.5},
    {"kind": "bounded", "round": 1, "site": "north", "norm": 9.0, "bound": 3.0},
    {"kind": "left_out", "round": 1, "site": "valley", "reason": "[bold]no reply[/bold] within 300 s"},
    {"kind": "warning", "round": 1, "message": "the certificate [bold]ends[/bold] in 9 days"},
    {"kind": "judged", "round": 1, "stage": "align", "verdict": "validation accuracy was best in round 0: back to it"},
    {"kind": "evaluation_started", "round": 1, "sites": ["north"], "deadline_s": 300.0},
    {
        "kind": "evaluated",
        "round": 1,
        "scores": {"exact_match": {"value": 0.5, "error": 0.1, "worst_site": "", "worst": None}},
        "replies": 1,
    },
    {"kind": "round_committed", "round": 1, "accuracy": 0.75, "replies": 2, "skipped": False, "seconds": 5.0},
]
ENDS: list[dict[str, Any]] = [
    {"kind": "waiting_for", "round": 1, "sites": ["valley"], "offline": ["valley"], "left_s": 200.0},
    {"kind": "late", "round": 1, "site": "valley"},
    {"kind": "interrupted", "message": "ReadTimeout: nothing came"},
    {"kind": "restarting", "message": "superlink ended with status -9", "wait_s": 1.5, "attempt": 1, "limit": 5},
    {"kind": "resumed", "round": 1, "rounds": 5},
    {"kind": "finished"},
    {"kind": "failed", "message": "the quorum was not met"},
]


def show(terminal: bool, *overrides: str, events: list[dict[str, Any]] = EVENTS) -> tuple[str, LiveView]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, color_system="truecolor" if terminal else None)
    with LiveView(console, load_experiment("demo", overrides)) as view:
        for event in events:
            view.handle(event)
    return stream.getvalue(), view


def test_progress_adds_up() -> None:
    _, view = show(False)
    progress = view.progress
    assert (progress.round, progress.rounds, progress.accuracies) == (1, 5, [0.5, 0.75])
    states = {name: site.state for name, site in progress.sites.items()}
    assert states == {"north": "replied", "harbour": "training", "valley": "left out"}
    assert progress.sites["north"].epsilon == 1.25 and progress.sites["north"].num_patients == 900


def test_without_a_terminal_every_event_is_one_plain_line() -> None:
    text, _ = show(False)
    lines = text.splitlines()
    assert len(lines) == len(EVENTS) and "\x1b" not in text
    assert "valley left out: [bold]no reply[/bold] within 300 s" in text
    assert "epsilon 1.25" in text and "75.0 %" in text and "waiting for harbour, valley (quorum 2); here: north" in text


def test_on_a_terminal_the_state_is_drawn() -> None:
    text, _ = show(True)
    assert "\x1b" in text
    for part in ("round 1 of 5", "valley", "left out", "1.25 of 4", "75.0 %", "[bold]no reply[/bold]"):
        assert part in "".join(piece for piece in _without_codes(text))


def _without_codes(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_every_kind_has_a_line_and_unknown_ones_do_no_harm() -> None:
    assert {event["kind"] for event in EVENTS + ENDS} == set(KINDS)
    assert all(plain_line(event) for event in EVENTS + ENDS)
    text, view = show(False, events=[*EVENTS, {"kind": "from_the_future"}, {}, *ENDS])
    assert len(text.splitlines()) == len(EVENTS) + len(ENDS) and view.progress.state == "failed"


def test_no_privacy_is_said_before_anything_else() -> None:
    reply = {"kind": "reply", "round": 1, "site": "north", "epsilon": -1.0, "seconds": 1.0}
    text, view = show(False, "privacy.mode=none", events=[reply])
    assert "NO differential privacy" in text.splitlines()[0] and "no bound" in text
    assert view.progress.sites["north"].epsilon is None
    show(True, "privacy.mode=none", events=[reply])


def test_a_site_that_is_gone_is_seen() -> None:
    text, view = show(False, events=[*EVENTS[:6], {"kind": "offline", "round": 1, "site": "harbour"}])
    assert "harbour is offline" in text
    assert view.progress.sites["harbour"].state == "offline"


def test_who_is_waited_for_since_when_and_how_long() -> None:
    started = {"kind": "round_started", "round": 2, "rounds": 5, "sites": ["north", "valley"], "deadline_s": 300.0}
    events = [started | {"time": 1000.0}, {"kind": "offline", "round": 2, "site": "valley", "time": 1040.0}]
    _, view = show(False, events=events)
    progress = view.progress
    assert progress.waits_for(1052.0) == "north, valley (offline for 12 s), at most 248 s"
    progress.handle({"kind": "reply", "round": 2, "site": "north", "epsilon": 1.0, "seconds": 3.0})
    progress.handle({"kind": "online", "round": 2, "site": "valley", "time": 1060.0})
    assert progress.waits_for(1400.0) == "valley, at most 0 s"
    progress.handle({"kind": "round_committed", "round": 2, "accuracy": 0.5, "replies": 1, "skipped": False})
    assert progress.waits_for(1400.0) == "" and progress.committed == 2


@pytest.mark.parametrize("end", [ENDS[3], ENDS[4]], ids=lambda end: end["kind"])
def test_a_server_app_that_comes_back_asks_every_site_anew(end: dict[str, Any]) -> None:
    _, view = show(False, events=[*EVENTS[:-1], end])
    assert {site.state for site in view.progress.sites.values()} == {"waited for"}
    assert view.progress.waits_for(0.0) == "" and view.progress.sites["north"].epsilon == 1.25


def test_a_site_that_has_answered_and_goes_has_answered() -> None:
    _, view = show(False)
    view.progress.handle({"kind": "offline", "round": 1, "site": "north", "time": 1.0})
    assert view.progress.sites["north"].state == "replied"


@pytest.mark.parametrize("terminal", [True, False])
def test_an_alarm_is_shown_when_it_begins(terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with LiveView(console, load_experiment("demo")) as view:
        for _ in range(3):
            view.alarm("no sign of the server app for 12 s")
        view.alarm("")
        view.alarm("no server app works on this run at present")
    text = _without_codes(stream.getvalue())
    assert "no server app works" in text
    if not terminal:
        assert text.count("no sign of the server app") == 1


def test_a_skipped_round_says_so() -> None:
    event = {"kind": "round_committed", "round": 2, "accuracy": 0.5, "replies": 1, "skipped": True, "seconds": 1.0}
    assert "skipped" in plain_line(event)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("mode", ["dp", "none"])
def test_summary(terminal: bool, mode: str, tmp_path: Path, finished_run: Callable[..., tuple[Path, Any]]) -> None:
    folder, experiment = finished_run(tmp_path / "demo", f"privacy.mode={mode}")
    report = build_report(folder, experiment, wall_s=61.0)
    stream = io.StringIO()
    print_summary(report, folder, Console(file=stream, force_terminal=terminal, width=300))
    text = _without_codes(stream.getvalue())
    for part in ("50.0 % zero-shot -> 80.0 %", "1 min 01 s", "not registered", "report.html", "1 skipped"):
        assert part in text
    assert ("NO differential privacy" in text) == (mode == "none")
    assert ("north 1.50" in text) == (mode == "dp")
