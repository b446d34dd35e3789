"""A plan as a picture: epsilon over rounds, the run alone and on top of what a cohort has spent. In: a Plan; out: a file.

>>> save_plot(plan, Path("plan.png"))                                                   # doctest: +SKIP
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from fedmed.errors import ConfigError
from fedmed.privacy.planning import Ledger, Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the Okabe-Ito palette, as in aggregator/reports/plots.py.
_RUN, _COHORT, _BUDGET, _MUTED = "#0072b2", "#009e73", "#d55e00", "#666666"


def check_format(path: Path) -> None:
    """Raises ConfigError for a file that would be neither PNG nor SVG, or has no folder."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise ConfigError([f"--plot {path}: expected a name that ends in .png or .svg"])
    if not path.absolute().parent.is_dir():
        raise ConfigError([f"--plot {path}: the folder does not exist"])


def save_plot(plan: Plan, path: Path) -> None:
    """Writes the plot as PNG or SVG, by the file's ending."""
    check_format(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    _draw_run(axes, plan)
    if plan.ledger and math.isfinite(plan.ledger.total):
        _draw_ledger(axes, plan, plan.ledger)
    _frame(axes, plan)
    figure.savefig(path, dpi=150)


def _draw_run(axes: Axes, plan: Plan) -> None:
    end = plan.run.rounds
    points = [(0, 0.0), *((cost.round, cost.epsilon) for cost in plan.rounds)]
    planned = [point for point in points if point[0] <= end]
    axes.plot(*zip(*planned, strict=True), color=_RUN, lw=2.2, label=f"this run, delta {plan.delta:g}")
    beyond = [point for point in points if point[0] >= end]
    axes.plot(*zip(*beyond, strict=True), color=_RUN, lw=1.4, ls=(0, (1, 2)))
    _mark(axes, end, plan.epsilon, _RUN)


def _draw_ledger(axes: Axes, plan: Plan, ledger: Ledger) -> None:
    end = plan.run.rounds
    points = [(0, ledger.spent), *((cost.round, cost.total or 0.0) for cost in plan.rounds)]
    planned = [point for point in points if point[0] <= end]
    label = f"cohort {ledger.cohort} in all, delta {ledger.delta:g}"
    axes.plot(*zip(*planned, strict=True), color=_COHORT, lw=2.2, label=label)
    beyond = [point for point in points if point[0] >= end]
    axes.plot(*zip(*beyond, strict=True), color=_COHORT, lw=1.4, ls=(0, (1, 2)))
    _mark(axes, end, ledger.total, _COHORT)
    axes.axhspan(0, ledger.spent, color=_COHORT, alpha=0.12, lw=0, label=f"spent before, {ledger.spent:.3g}")
    axes.axhline(ledger.budget, color=_BUDGET, lw=1.4, ls=(0, (5, 3)), label=f"budget {ledger.budget:g}")


def _mark(axes: Axes, end: int, value: float, colour: str) -> None:
    axes.plot([end], [value], "o", color=colour, ms=6)
    axes.annotate(f"{value:.3g}", (end, value), xytext=(-6, 6), textcoords="offset points", ha="right", color=colour)


def _frame(axes: Axes, plan: Plan) -> None:
    from matplotlib.ticker import MaxNLocator

    run = plan.run
    axes.axvline(run.rounds, color=_MUTED, lw=0.8, alpha=0.6)
    axes.set_xlabel(
        f"round of {run.local_steps} steps, noise {run.noise_multiplier:g}, sample rate {run.sample_rate:.4g} "
        "(dotted: beyond the plan)"
    )
    axes.set_ylabel("epsilon per patient")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.set_xlim(0, plan.rounds[-1].round)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#dddddd", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=_MUTED, length=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=9, borderaxespad=0.1)
