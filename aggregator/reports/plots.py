"""A report's plots as SVG for inside an HTML page: the page's own ink and font, no identifier used twice, no address.

    svg = accuracy_plot(report)

Texts and lines of the frame are drawn in marker colours that become CSS variables, so that they follow the page from
light to dark. Series colours are of the Okabe-Ito palette, which people with colour vision deficiency tell apart; the
series also differ in their markers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID, _PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--line)", _PAPER: "var(--card)"}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vP"
_SIZE_IN = (5.8, 3.1)


def accuracy_plot(report: Mapping[str, Any]) -> str:
    """Test accuracy after each round, with zero-shot and the majority answer as lines; skipped rounds hollow."""

    def draw(axes: Axes) -> None:
        rounds = report["rounds"]
        points = [(0, report["zero_shot_accuracy"], False)]
        points += [(item["round"], item["test_accuracy"], item["skipped"]) for item in rounds]
        known = [(x, 100 * y, hollow) for x, y, hollow in points if y is not None]
        axes.plot([x for x, *_ in known], [y for _, y, _ in known], color=_COLOURS[0], lw=2.2, label="after the round")
        for x, y, hollow in known:
            face = _PAPER if hollow else _COLOURS[0]
            axes.plot([x], [y], "o", ms=6, mec=_COLOURS[0], mfc=face, mew=1.6, zorder=3)
        if any(hollow for *_, hollow in known):
            axes.plot([], [], "o", mec=_COLOURS[0], mfc=_PAPER, mew=1.6, label="round skipped")
        _level(axes, report["zero_shot_accuracy"], "zero-shot", (0, (5, 3)), _COLOURS[1])
        _level(axes, report["majority_accuracy"], "majority answer", (0, (1, 2)), _MUTED)
        values = [y for _, y, _ in known] + [100 * (report["majority_accuracy"] or 0.5)]
        axes.set_ylim(max(0.0, min(values) - 6), min(101.0, max(values) + 6))
        axes.set_ylabel("test accuracy (%)")
        _round_axis(axes, len(rounds), first=0)

    return _svg("accuracy", "Test accuracy after each round", draw)


def epsilon_plot(report: Mapping[str, Any]) -> str:
    """Epsilon spent by each site after each round it joined, with the planned budget as a line."""

    def draw(axes: Axes) -> None:
        rounds, planned = report["rounds"], report["privacy"]["epsilon_planned"]
        drawn = False
        for index, site in enumerate(item["name"] for item in report["sites"]):
            points = [(item["round"], item["epsilon"].get(site)) for item in rounds]
            known = [(0, 0.0)] + [(x, y) for x, y in points if y is not None]
            drawn |= len(known) > 1
            style: Any = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}
            if len(known) > 1:
                axes.plot([x for x, _ in known], [y for _, y in known], lw=1.8, ms=4.5, label=site, **style)
        if planned is not None:
            axes.axhline(planned, color=_INK, lw=1.2, ls=(0, (5, 3)), label=f"planned {planned:g}")
        axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], planned or 0.0))
        axes.set_ylabel("epsilon spent, per patient")
        _round_axis(axes, len(rounds), first=0)
        if not drawn:
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no finite epsilon", transform=axes.transAxes, ha="center", va="center", color=_MUTED)

    return _svg("epsilon", "Epsilon spent by each site after each round", draw)


def traffic_plot(report: Mapping[str, Any]) -> str:
    """Bytes up and down of each round as bars, its seconds as a line on a second axis."""

    def draw(axes: Axes) -> None:
        rounds = report["rounds"]
        numbers = [item["round"] for item in rounds]
        largest = max((max(item["bytes_up"], item["bytes_down"]) for item in rounds), default=0)
        unit, scale = ("MB", 1e6) if largest >= 1e6 else ("kB", 1e3)
        for side, (key, label) in enumerate(
            (("bytes_down", "bytes to the sites"), ("bytes_up", "bytes from the sites"))
        ):
            places = [number + (side - 0.5) * 0.36 for number in numbers]
            colour = (_COLOURS[5], _COLOURS[0])[side]
            axes.bar(places, [item[key] / scale for item in rounds], width=0.34, color=colour, label=label)
        axes.set_ylabel(f"traffic ({unit}, all sites)")
        axes.set_ylim(0, 1.12 * largest / scale or 1.0)
        times = axes.twinx()
        values = [item["seconds"] or 0.0 for item in rounds]
        times.plot(numbers, values, "o-", ms=4.5, lw=1.8, color=_COLOURS[1], label="seconds")
        times.set_ylabel("round (s)", color=_INK)
        times.set_ylim(0, max(values, default=1.0) * 1.25 or 1.0)
        times.tick_params(colors=_MUTED, length=0)
        times.spines[:].set_visible(False)
        _round_axis(axes, len(rounds), first=1)
        handles = [entry for part in (axes, times) for entry in zip(*part.get_legend_handles_labels(), strict=True)]
        _legend(axes, [handle for handle, _ in handles], [label for _, label in handles])

    return _svg("traffic", "Bytes and seconds of each round", draw)


def _level(axes: Axes, value: float | None, label: str, dashes: Any, colour: str) -> None:
    if value is not None:
        axes.axhline(100 * value, color=colour, lw=1.4, ls=dashes, label=f"{label} {100 * value:.1f} %")


def _round_axis(axes: Axes, count: int, first: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.set_xlim(first - 0.5, max(count, 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))


def _legend(axes: Axes, *entries: Any) -> None:
    """Above the plot: a long row would push the plot aside, so four or more entries take two."""
    count = len(entries[0]) if entries else len(axes.get_legend_handles_labels()[0])
    columns = count if count <= 3 else (count + 1) // 2
    axes.legend(
        *entries, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, frameon=False, fontsize=8.5, labelcolor=_INK,
        borderaxespad=0.1, columnspacing=1.4, handlelength=2.0,
    )  # fmt: skip


def _svg(name: str, title: str, draw: Callable[[Axes], None]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 9}
    style |= {"text.parse_math": False}  # a site's name may hold a dollar
    with matplotlib.rc_context(style):
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="y", color=_GRID, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_GRID)
        axes.tick_params(colors=_MUTED, length=0)
        axes.xaxis.label.set_color(_INK)
        axes.yaxis.label.set_color(_INK)
        draw(axes)
        if axes.get_legend() is None and axes.get_legend_handles_labels()[0]:
            _legend(axes)
        stream = io.StringIO()
        figure.savefig(
            stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _embed(stream.getvalue(), name, title)


def _embed(svg: str, name: str, title: str) -> str:
    """The svg element alone, with its own identifiers and the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
    for marker, variable in _VARIABLES.items():
        svg = svg.replace(marker, variable)
    width, height = (f"{72 * side:g}" for side in _SIZE_IN)
    head = f'<svg role="img" aria-label="{title}" viewBox="0 0 {width} {height}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + svg[svg.index(">") + 1 :]
