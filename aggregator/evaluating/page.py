"""An evaluation as one HTML page: no script, no address, images inside it; readable in light, dark and on paper.

    html = render_page(results, worst_errors(...))

Words and layout are in templates/evaluation.html.j2; every text is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aggregator.evaluating.worst import WorstError
from aggregator.reports.page import STYLE, moment
from fedmed.metrics.answers import LEGACY, MAIN
from fedmed.metrics.pairs import MIN_PATIENTS

# Scores that are no share: CIDEr-D goes up to 10.
_OUT_OF_TEN = ("cider_d",)
# What the rows by kind of question show; the rest is in scores.json.
_IN_GROUPS = (*MAIN, "open_recall", "finding_absent_f1")


def render_page(results: Mapping[str, Any], errors: Sequence[WorstError]) -> str:
    """The page of one evaluation."""
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates", STYLE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": moment, "number": number, "interval": interval, "change": change}
    return environment.get_template("evaluation.html.j2").render(
        r=results,
        pairs=side_by_side(results),
        groups=by_field(results),
        same_on_blank=same_on_blank(results),
        few=MIN_PATIENTS,
        errors=errors,
    )


def side_by_side(
    results: Mapping[str, Any],
) -> list[tuple[str, Mapping[str, Any], list[tuple[str, Mapping[str, Any]]]]]:
    """(score to report, its numbers, the published ones beside it); first what a model is judged by."""
    scores, corrected = results["scores"], results["corrected"]
    names = [name for name in scores if not name.startswith(LEGACY)]
    names.sort(key=lambda name: (MAIN.index(name) if name in MAIN else len(MAIN), name))
    return [
        (name, scores[name], [(old, scores[old]) for old, new in corrected.items() if new == name]) for name in names
    ]


def same_on_blank(results: Mapping[str, Any]) -> list[str]:
    """The sentences that say so, where the model scores the same on blank images."""
    blank = (results["controls"] or {}).get("blank", {"sentences": [], "same": []})
    return [sentence for sentence, same in zip(blank["sentences"], blank["same"], strict=True) if same]


def by_field(results: Mapping[str, Any]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """field -> value -> its rows of the scores that the page shows."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in results["groups"]:
        if row["score"] in _IN_GROUPS:
            found.setdefault(row["field"], {}).setdefault(row["value"], []).append(row)
    return found


def number(value: float | None, score: str = "") -> str:
    """A score in percent, or as it is where it is no share."""
    if value is None:
        return "–"
    return f"{value:.2f}" if score in _OUT_OF_TEN else f"{100 * value:.1f} %"


def interval(row: Mapping[str, Any], score: str = "") -> str:
    """`61.2 to 70.9`, or nothing."""
    if row["low"] is None or row["high"] is None:
        return "–"
    low, high = row["low"], row["high"]
    return f"{low:.2f} to {high:.2f}" if score in _OUT_OF_TEN else f"{100 * low:.1f} to {100 * high:.1f}"


def change(value: float | None, score: str = "") -> str:
    """A difference with its sign: points of percent, or as it is."""
    if value is None:
        return "–"
    return f"{value:+.2f}" if score in _OUT_OF_TEN else f"{100 * value:+.1f}"
