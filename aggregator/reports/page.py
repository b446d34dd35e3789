"""A report as one HTML page: no script, no address, plots inside it as SVG; readable in light, dark and on paper.

    html = render_page(report)

The page's words and layout are in templates/, the plots in plots.py; here are the formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aggregator.reports.plots import accuracy_plot, epsilon_plot, traffic_plot

# Templates of other pages include style.css from here.
STYLE = Path(__file__).parent / "templates"


def render_page(report: Mapping[str, Any]) -> str:
    """The page. Every text of the report is escaped."""
    environment = Environment(
        loader=FileSystemLoader(STYLE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "size": size,
        "duration": duration,
        "epsilon": epsilon,
        "moment": moment,
        "short": lambda text: (text or "unknown")[:12],
    }
    plots = {
        "accuracy": Markup(accuracy_plot(report)),  # noqa: S704  matplotlib escapes its texts
        "epsilon": Markup(epsilon_plot(report)),  # noqa: S704  matplotlib escapes its texts
        "traffic": Markup(traffic_plot(report)),  # noqa: S704  matplotlib escapes its texts
    }
    totals = {
        "bytes": sum(item["bytes_up"] + item["bytes_down"] for item in report["rounds"]),
        "seconds": sum(item["seconds"] or 0.0 for item in report["rounds"]),
        "skipped": sum(item["skipped"] for item in report["rounds"]),
        "left_out": sum(len(item["left_out"]) for item in report["rounds"]),
        "patients": sum(site["num_patients"] or 0 for site in report["sites"]),
    }
    return environment.get_template("report.html.j2").render(r=report, plots=plots, totals=totals)


def percent(value: float | None) -> str:
    """0.8125 as `81.2 %`."""
    return "–" if value is None else f"{100 * value:.1f} %"


def size(value: float) -> str:
    """Bytes with a unit: 1536 as `1.5 kB` (1 kB = 1000 B)."""
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def duration(value: float | None) -> str:
    """Seconds as a person says them: `4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if value is None:
        return "–"
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def epsilon(value: float | None) -> str:
    """Two digits after the point; no bound is the sign for infinity."""
    return "∞" if value is None else f"{value:.2f}"


def moment(text: str) -> str:
    """A time in ISO 8601 as `21 Nov 2026, 20:58 UTC`."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%-d %b %Y, %H:%M UTC")
