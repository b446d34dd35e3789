"""What a person sees while a federation runs: fed one event at a time, drawn live on a terminal, else plain lines.

    with LiveView(Console(), experiment) as view:
        for event in follower.new_events():        # kinds and fields: see aggregator/watching/events.py
            view.handle(event)
    print_summary(report, folder, console)

What the events add up to, and each of them as text: aggregator/watching/progress.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aggregator.reports.page import duration, epsilon, percent, size
from aggregator.watching.progress import Progress, SiteProgress, plain_line
from fedmed.config import Experiment

_STYLES = {
    "waited for": "yellow",
    "training": "cyan",
    "evaluating": "cyan",
    "replied": "green",
    "joined": "green",
    "left out": "red",
    "offline": "red",
}


class LiveView:
    """Shows a run's events as they come: redrawn in place on a terminal, one plain line an event elsewhere."""

    def __init__(self, console: Console, experiment: Experiment) -> None:
        self._console, self._experiment = console, experiment
        sites = {name: SiteProgress() for name in experiment.partition.sites}
        self.progress = Progress(rounds=experiment.rounds, sites=sites)
        self._started = time.monotonic()
        self._live: Live | None = None
        self._alarm = ""

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        privacy = self._experiment.privacy
        if privacy.mode == "none" or privacy.insecure_noise_seed >= 0:
            why = "privacy.mode=none" if privacy.mode == "none" else "privacy.insecure_noise_seed is set"
            warning = f"WARNING: {why}: this run gives patients NO differential privacy"
            self._console.print(Text(warning, style="bold red"), soft_wrap=True)
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def handle(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        self.progress.handle(event)
        if self._live is not None:
            if event.get("kind") == "warning":  # stays readable above what is redrawn
                self._console.print(Text(plain_line(event), style="bold red"), soft_wrap=True)
            self._live.refresh()
        elif line := plain_line(event):
            elapsed = f"[{time.monotonic() - self._started:6.1f} s] "
            self._console.print(Text(elapsed + line), soft_wrap=True)

    def recall(self, event: Mapping[str, Any]) -> None:
        """Take in an event of an earlier start without showing it as a line."""
        self.progress.handle(event)

    def show_state(self) -> None:
        """What was recalled, in one line; on a terminal it is drawn anyway."""
        progress = self.progress
        if self._live is None:
            waits = progress.waits_for(time.time())
            self.note(
                f"round {progress.round} of {progress.rounds}: {progress.state}"
                + (f"; waiting for {waits}" if waits else "")
            )

    def alarm(self, text: str) -> None:
        """What is wrong with the server app at present, "" for nothing; without a terminal a line when that changes."""
        if text and not self._alarm and self._live is None:
            self.note(text)
        self._alarm = text

    def note(self, text: str) -> None:
        """One line that stays above what is redrawn; may be called from another thread."""
        self._console.print(Text(text, style="yellow"), soft_wrap=True)

    def _draw(self) -> Panel:
        progress = self.progress
        head = Table.grid(expand=True, padding=(0, 2))
        head.add_column(ratio=1)
        head.add_column(justify="right")
        elapsed = str(timedelta(seconds=int(time.monotonic() - self._started)))
        head.add_row(
            Text.assemble(
                ("round ", "dim"),
                (f"{progress.round} of {progress.rounds}", "bold"),
                ("  ", ""),
                (progress.state, "dim"),
            ),
            Text(elapsed, style="dim"),
        )
        bar = ProgressBar(
            total=max(progress.rounds, 1), completed=progress.committed, complete_style="cyan", finished_style="green"
        )
        waits = progress.waits_for(time.time())
        lines = [Text(f"waiting for {waits}", style="yellow")] if waits else []
        lines += [Text(self._alarm, style="bold red")] if self._alarm else []
        sites = _sites_table(progress, self._budget())
        body = Group(head, *lines, bar, sites, _accuracy_text(progress.accuracies))
        return Panel(body, title=f"FedMed: {self._experiment.name}", border_style="dim", box=box.ROUNDED)

    def _budget(self) -> float | None:
        privacy = self._experiment.privacy
        return privacy.epsilon if privacy.mode == "dp" else None


def print_summary(report: Mapping[str, Any], folder: Path, console: Console) -> None:
    """The few lines at the end of a run: what was reached, what it cost, where it is."""
    privacy = report["privacy"]
    if privacy["warning"]:
        console.print(Text(f"WARNING: {privacy['warning']}", style="bold red"), soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim" if console.is_terminal else "")
    table.add_column(overflow="fold")
    for name, value in _summary_rows(report, folder):
        table.add_row(name, Text(value))
    if console.is_terminal:
        console.print(Panel(table, title=f"{report['experiment']}: done", border_style="green", box=box.ROUNDED))
        return
    for name, value in _summary_rows(report, folder):
        console.print(Text(f"{name:10} {value}"), soft_wrap=True)


def _summary_rows(report: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    privacy, rounds, served, entry = report["privacy"], report["rounds"], report["served"], report["registry"]
    skipped = sum(item["skipped"] for item in rounds)
    traffic = sum(item["bytes_up"] + item["bytes_down"] for item in rounds)
    spent = ", ".join(f"{site['name']} {epsilon(site['epsilon'])}" for site in report["sites"])
    planned = "" if privacy["epsilon_planned"] is None else f" (planned {privacy['epsilon_planned']:g})"
    rows = [
        (
            "accuracy",
            f"{percent(report['zero_shot_accuracy'])} zero-shot -> {percent(report['final_accuracy'])} "
            f"(majority answer {percent(report['majority_accuracy'])})",
        ),
        ("epsilon", f"{spent}{planned}, per patient" if privacy["mode"] == "dp" else "no differential privacy"),
        (
            "rounds",
            f"{len(rounds)}, {skipped} skipped; {size(traffic)} of traffic; {duration(report['wall_s'])} in all",
        ),
    ]
    version = f"{entry['name']}:{entry['version']} ({entry['alias'] or 'no alias'})" if entry else "not registered"
    rows.append(("registry", version))
    if served:
        truth = f", expected {served['expected']!r}" if "expected" in served else ""
        rows.append(("asked", served["question"]))
        rows.append(("answer", f"{served['answer']!r}{truth}, {duration(served['latency_s'])}"))
    rows += _held_out_rows(report["federated_evaluation"])
    return [*rows, ("report", str(folder / "report.html"))]


def _held_out_rows(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """One line a score of the hospitals' held-out patients."""
    rows = []
    for score in found["scores"] if found else []:
        worst = (
            f"; worst site {score['worst_site']} {_noisy(score, 'worst', 'worst_error')}" if score["worst_site"] else ""
        )
        rows.append(("held out", f"{score['name']} {_noisy(score, 'value', 'error')}{worst}"))
    return rows


def _noisy(score: Mapping[str, Any], value: str, error: str) -> str:
    return "too few to tell" if score[value] is None else f"{percent(score[value])} +- {percent(score[error])}"


def _sites_table(progress: Progress, budget: float | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    for name, justify in (("site", "left"), ("patients", "right"), ("epsilon spent", "right"), ("now", "left")):
        table.add_column(name, justify=justify, header_style="dim", no_wrap=name != "now")  # type: ignore[arg-type]
    for name, site in progress.sites.items():
        spent = epsilon(site.epsilon) + (f" of {budget:g}" if budget is not None else "")
        state = Text(site.state, style=_STYLES.get(site.state, ""))
        if site.detail:
            state.append(f"  {site.detail}", style="dim" if site.state != "left out" else "red")
        table.add_row(name, str(site.num_patients or ""), spent, state)
    return table


def _accuracy_text(accuracies: Sequence[float]) -> Text:
    if not accuracies:
        return Text("accuracy  not measured yet", style="dim")
    text = Text.assemble(("accuracy  ", "dim"), (percent(accuracies[-1]), "bold"))
    if len(accuracies) > 1:
        text.append(f"  from {percent(accuracies[0])} zero-shot  ", style="dim")
        text.append(_spark(accuracies), style="cyan")
    return text


def _spark(values: Sequence[float]) -> str:
    """The values as a row of small bars, lowest to highest."""
    low, high = min(values), max(values)
    bars = "▁▂▃▄▅▆▇█"
    return "".join(bars[round((value - low) / ((high - low) or 1) * (len(bars) - 1))] for value in values[-40:])
