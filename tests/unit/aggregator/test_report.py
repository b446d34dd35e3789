"""The report's numbers, its schema's document, and the page: whole, self-contained and escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from aggregator.registry import Version
from aggregator.reports.page import duration, percent, render_page, size
from aggregator.reports.report import build_report, write_html, write_json_report
from fedmed.errors import FederationError

ROOT = Path(__file__).parents[3]
VERSION = Version("fedmed", 3, "abc", ("challenger", "champion"), {}, "", "2026-01-01T00:00:00+00:00")
SERVED = {"model": "fedmed:3", "question": "<b>q</b>?", "answer": "yes", "expected": "yes", "latency_s": 0.2}
FinishedRun = Callable[..., tuple[Path, Any]]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, finished_run: FinishedRun) -> dict[str, Any]:
    folder, experiment = finished_run(tmp_path_factory.mktemp("report") / "demo")
    return build_report(folder, experiment, version=VERSION, served=SERVED, wall_s=123.45)


def test_it_has_what_the_issue_asks(report: dict[str, Any]) -> None:
    assert report["transport"] == "grpc" and report["method"] == "ffa_lora" and report["wall_s"] == 123.5
    assert (report["zero_shot_accuracy"], report["final_accuracy"], report["majority_accuracy"]) == (0.5, 0.8, 0.5)
    assert report["registry"] == {"name": "fedmed", "version": 3, "alias": "champion", "run_id": "abc"}
    assert len(report["base_model"]["sha256"]) == 64 and report["served"] == SERVED
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_skipped_rounds_and_sites_left_out_are_there(report: dict[str, Any]) -> None:
    assert [item["round"] for item in report["rounds"]] == [1, 2, 3]
    skipped = report["rounds"][1]
    assert skipped["skipped"] and skipped["replies"] == 1 and len(skipped["left_out"]) == 2
    joined = {site["name"]: site["rounds_joined"] for site in report["sites"]}
    assert sorted(joined.values()) == [2, 2, 3]


def test_privacy_is_the_worst_site(report: dict[str, Any]) -> None:
    privacy = report["privacy"]
    assert privacy["mode"] == "dp" and privacy["warning"] is None and privacy["unit"] == "patient"
    assert privacy["max_epsilon"] == 1.5 == max(site["epsilon"] for site in report["sites"])
    assert privacy["noise_multiplier"] > 0 and privacy["epsilon_planned"] == 4.0


def test_every_key_is_documented(report: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "report.md").read_text()
    keys = set(report) | set(report["privacy"]) | set(report["data"])
    keys |= set(report["sites"][0]) | set(report["rounds"][0]) | set(report["served"]) | set(report["registry"])
    assert not [key for key in sorted(keys) if f"`{key}`" not in text]


class Page(HTMLParser):
    """Collects what a browser would fetch, and every id."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "data", "action"} and value and not value.startswith("#"):
                self.fetched.append(value)
            if name == "id" and value:
                self.ids.append(value)
        assert tag not in {"script", "link", "iframe", "object"}


def test_the_page_is_self_contained_and_escaped(report: dict[str, Any], tmp_path: Path) -> None:
    write_html(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.fetched == [] and len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\((?!#)", text)
    assert "<b>q</b>" not in text and "&lt;b&gt;q" in text
    assert text.count("<svg") == 3 and "skipped" in text and "no reply within 300 s" in text
    assert 'role="alert"' not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_name_from_the_wire_cannot_break_the_page(report: dict[str, Any]) -> None:
    name = "<script>$x_</script>"
    hostile = json.loads(json.dumps(report).replace("north", name))
    text = render_page(hostile)
    assert "<script" not in text and text.count("&lt;script") >= 2
    Page().feed(text)


def test_local_accuracy_is_shown_where_it_was_asked_for(report: dict[str, Any]) -> None:
    assert "local accuracy" not in render_page(report)
    asked = json.loads(json.dumps(report))
    asked["privacy"]["metrics_noise_multiplier"] = 2.0
    asked["rounds"][0] |= {"local_accuracy": 0.755, "local_error": 0.031}
    text = render_page(asked)
    assert "<th>local accuracy, before</th>" in text
    assert "75.5 % &plusmn; 3.1 %" in text
    assert "<td>–</td>" in text  # the other rounds had too few patients to tell


def test_a_hidden_patient_count_is_said_so(report: dict[str, Any]) -> None:
    hidden = json.loads(json.dumps(report))
    hidden["sites"][0]["num_patients"] = None
    assert "<td>not told</td>" in render_page(hidden)


def test_noise_from_a_seed_is_loud(tmp_path: Path, finished_run: FinishedRun) -> None:
    folder, experiment = finished_run(tmp_path / "seeded", "privacy.insecure_noise_seed=3")
    assert "insecure_noise_seed" in build_report(folder, experiment)["privacy"]["warning"]


def test_no_privacy_is_loud(tmp_path: Path, finished_run: FinishedRun) -> None:
    folder, experiment = finished_run(tmp_path / "open", "privacy.mode=none")
    report = build_report(folder, experiment)
    assert "NO differential privacy" in report["privacy"]["warning"]
    assert report["privacy"]["max_epsilon"] is None and report["privacy"]["delta"] is None
    assert all(site["epsilon"] is None for site in report["sites"])
    assert report["registry"] is None and report["served"] is None
    write_html(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert 'role="alert"' in text and "NO differential privacy" in text and "no finite epsilon" in text


def test_a_run_that_stopped_before_its_first_round_has_a_page(tmp_path: Path, finished_run: FinishedRun) -> None:
    folder, experiment = finished_run(tmp_path / "short", accuracies=(0.5,))
    report = build_report(folder, experiment)
    assert report["rounds"] == [] and report["final_accuracy"] == 0.5
    assert all(site["rounds_joined"] == 0 and site["num_patients"] == 600 for site in report["sites"])
    write_html(report, tmp_path / "report.html")


def test_a_folder_without_rounds_is_refused(tmp_path: Path, report: dict[str, Any]) -> None:
    from fedmed.config import load_experiment

    with pytest.raises(FederationError, match="no committed round"):
        build_report(tmp_path, load_experiment("demo"))


def test_json_is_replaced_in_one_step(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    write_json_report(report, path)
    assert json.loads(path.read_text()) == report and list(tmp_path.iterdir()) == [path]


def test_units() -> None:
    assert [size(value) for value in (0, 999, 1500, 2.5e6, 3e9)] == ["0 B", "999 B", "1.5 kB", "2.5 MB", "3.00 GB"]
    assert [duration(value) for value in (None, 0.142, 4.24, 185, 7800)] == [
        "–",
        "142 ms",
        "4.2 s",
        "3 min 05 s",
        "2 h 10 min",
    ]
    assert [percent(None), percent(0.8125)] == ["–", "81.2 %"]
