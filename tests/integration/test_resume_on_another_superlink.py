"""The aggregator's machine is lost in the middle of a round, but for the run's folder: the run goes on at another SuperLink."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from helpers_hospitals import start_daemon, start_link, start_node
from helpers_runs import (
    TWO_SITES,
    commits,
    decisions,
    ending_all,
    fedmed,
    marked,
    outcome,
    reservations,
    start_fedmed,
    start_run,
    wait_until,
)

from aggregator.rounds.store import RoundStore
from aggregator.runs.processes import ProcessGroup
from aggregator.superlink.launcher import free_ports

ROUNDS = 2
NAMES = ("north", "valley")
RUN = [*TWO_SITES, f"training.rounds={ROUNDS}"]


def test_the_run_goes_on_at_another_superlink(tmp_path: Path) -> None:
    runs, hospitals = tmp_path / "runs", tmp_path / "hospitals"
    folder, sites = runs / "moved", [hospitals / "sites" / name for name in NAMES]
    assert fedmed("data", "split", "demo", str(tmp_path / "data"), *RUN).returncode == 0
    fleets, controls = ([f"127.0.0.1:{port}" for port in free_ports(2)] for _ in range(2))
    with ProcessGroup(tmp_path / "logs") as group, ending_all(runs):
        for site in sites:
            site.parent.mkdir(parents=True, exist_ok=True)
            start_daemon(group, site, tmp_path / "data" / "sites" / site.name / "data")
        with ProcessGroup(tmp_path / "logs-first") as first:
            start_link(first, tmp_path / "link-first", fleets[0], controls[0])
            for site in sites:
                start_node(first, site, fleets[0])
            process = start_run(runs, "moved", *RUN, options=("--superlink", controls[0]))
            wait_until(lambda: decisions(hospitals, "north", "accepted") == [1], "north trains round 1", process)
            process.kill()
            process.wait()
        wait_until(lambda: not marked(runs), "the first SuperLink's server app has ended with it")
        assert not (folder / "report.json").exists()
        start_link(group, tmp_path / "link-second", fleets[1], controls[1])
        for site in sites:
            start_node(group, site, fleets[1])
        output = outcome(start_fedmed(runs, "resume", str(folder), "--superlink", controls[1]))
    assert "accuracy" in output
    records = RoundStore(folder / "rounds").records()
    assert [sorted(report.site for report in record.replies) for record in records[1:]] == [sorted(NAMES)] * ROUNDS
    once = Counter(range(1, ROUNDS + 1))
    assert {site: (reservations(hospitals, site), commits(hospitals, site)) for site in NAMES} == dict.fromkeys(
        NAMES, (once, once)
    )
