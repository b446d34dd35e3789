"""The held-out patients' scores where people read them: report, page, events as lines, summary, registry points."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aggregator.registry import MemoryRegistry
from aggregator.registry.outbox import HELD_OUT, Outbox, deliver_rounds
from aggregator.registry.story import evaluation_points
from aggregator.reports.page import render_page
from aggregator.reports.report import build_report
from aggregator.rounds.evaluation import EvaluationRecord, SiteSums, commit_evaluation
from aggregator.rounds.store import RoundStore
from aggregator.watching.live import print_summary
from aggregator.watching.progress import Progress, SiteProgress, plain_line

ROOT = Path(__file__).parents[3]
FinishedRun = Callable[..., tuple[Path, Any]]
REPLIES = (
    SiteSums("coast", (90.0, 20.0), (100.0, 20.0)),
    SiteSums("harbour", (300.0, 80.0), (400.0, 160.0)),
    SiteSums("valley", (12.0, 3.0), (20.0, 5.0)),
)


def record(folder: Path, **changes: Any) -> EvaluationRecord:
    """Three sites' answers, one of too few patients to tell, and a fourth that gave none; committed."""
    last = RoundStore(folder / "rounds").last()
    assert last is not None
    values: dict[str, Any] = {
        "round": last.round,
        "adapter_sha256": last.adapter_sha256,
        "scores": ("exact_match", "open_recall"),
        "noise_multiplier": 4.0,
        "epsilon": 0.93211,
        "delta": 1e-5,
        "replies": REPLIES,
        "left_out": {"north": "refused (policy): <no>"},
        "seconds": 2.5,
    }
    found = EvaluationRecord(**{**values, **changes})
    commit_evaluation(folder / "rounds", found)
    return found


@pytest.fixture
def folder(tmp_path: Path, finished_run: FinishedRun) -> tuple[Path, Any]:
    return finished_run(tmp_path / "demo")


def test_it_is_in_the_report_and_every_key_is_documented(folder: tuple[Path, Any]) -> None:
    assert build_report(*folder)["federated_evaluation"] is None
    record(folder[0])
    section = build_report(*folder)["federated_evaluation"]
    exact = section["scores"][0]
    assert (exact["name"], exact["worst_site"], exact["worst"]) == ("exact_match", "harbour", 0.75)
    assert exact["value"] == pytest.approx(402 / 520, abs=1e-4)
    assert exact["sites"][2] == {"site": "valley", "value": None, "error": None, "patients": None}
    assert section["epsilon"] == 0.9322 and section["left_out"] == {"north": "refused (policy): <no>"}
    text = (ROOT / "docs" / "report.md").read_text()
    assert [key for key in (*section, *exact, *exact["sites"][0]) if f"`{key}`" not in text] == []
    assert json.loads(json.dumps(section, allow_nan=False)) == section


def test_the_evaluation_of_another_adapter_is_none_of_this_report(folder: tuple[Path, Any]) -> None:
    record(folder[0], adapter_sha256="0" * 64)
    assert build_report(*folder)["federated_evaluation"] is None


def test_the_page_shows_each_site_the_worst_and_who_did_not_answer(folder: tuple[Path, Any]) -> None:
    assert "Held-out patients" not in render_page(build_report(*folder))
    record(folder[0])
    page = render_page(build_report(*folder))
    assert page.count("too few to tell") == 3 and "75.0 %" in page and "no answer: refused (policy): &lt;no&gt;" in page
    assert page.count(">worst<") == 1 and "epsilon 0.93" in page
    record(folder[0], noise_multiplier=0.0, epsilon=None, replies=REPLIES[:1])
    page = render_page(build_report(*folder))
    assert "Exact: this evaluation had no privacy" in page and ">worst<" not in page and "&plusmn;" not in page


def test_the_summary_has_a_line_a_score(folder: tuple[Path, Any]) -> None:
    record(folder[0])
    out = StringIO()
    print_summary(build_report(*folder), folder[0], Console(file=out, width=200))
    assert "held out   exact_match 77.3 % +- 1.5 %; worst site harbour 75.0 % +- 1.1 %" in out.getvalue()


def test_events_become_lines() -> None:
    progress = Progress(rounds=1, sites={"north": SiteProgress(), "valley": SiteProgress()})
    started = {"kind": "evaluation_started", "round": 1, "sites": ["north", "valley"], "deadline_s": 9.0}
    progress.handle(started)
    assert progress.sites["north"].state == "evaluating"
    assert plain_line(started) == "held-out patients: asking north, valley"
    progress.handle({"kind": "left_out", "round": 1, "site": "valley", "reason": "no"})
    scores = {
        "exact_match": {"value": 0.5, "error": 0.02, "worst_site": "north", "worst": 0.4},
        "open_f1": {"value": None, "error": None, "worst_site": "", "worst": None},
    }
    done = {"kind": "evaluated", "round": 1, "scores": scores, "replies": 1}
    progress.handle(done)
    assert (progress.sites["north"].state, progress.sites["valley"].state) == ("replied", "left out")
    assert plain_line(done) == (
        "held-out patients, 1 sites: exact_match 50.0 % +- 2.0 % (worst north 40.0 %), open_f1 too few to tell"
    )


def test_the_registry_gets_what_can_be_told_once(folder: tuple[Path, Any]) -> None:
    found = record(folder[0])
    points = {point.name: point.value for point in evaluation_points(found, 1.0)}
    assert points["held_out/exact_match/harbour"] == 0.75 and "held_out/exact_match/valley" not in points
    assert set(points) >= {"held_out/exact_match", "held_out_error/exact_match", "held_out/open_recall"}
    outbox, registry = Outbox(folder[0]), MemoryRegistry()
    outbox.fill()
    assert HELD_OUT in outbox.pending()
    deliver_rounds(outbox, registry)
    assert outbox.pending() == []
    Outbox(folder[0]).fill()
    assert Outbox(folder[0]).pending() == []
