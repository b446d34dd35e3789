"""A run whose processes are killed at the worst moment: it goes on after the last committed round, and nothing is spent twice."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from helpers_runs import (
    TWO_SITES,
    assert_each_round_once,
    connector,
    daemon,
    decisions,
    ending_all,
    fedmed,
    kill_all,
    marked,
    outcome,
    server_app,
    start_fedmed,
    start_run,
    superlink,
    wait_for_event,
    wait_until,
)

ROUNDS = 3


def one_version(runs: Path, folder: Path) -> None:
    """The registry holds one version, of one MLflow run, and the run's report names it."""
    from mlflow import MlflowClient

    from aggregator.registry import open_registry

    registry = open_registry("", runs)
    (version,) = registry.versions("fedmed")
    client = MlflowClient(tracking_uri=registry.uri)
    experiment = client.get_experiment_by_name("fedmed")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == version.run_id
    assert json.loads((folder / "report.json").read_text())["registry"]["version"] == version.version == 1


def hold_valley_until_north_has_trained(process, runs: Path, folder: Path, number: int):
    """Stops valley's daemon in the middle of its training, and waits until north has its result: the round stays open."""
    wait_for_event(process, folder, "round_committed", round=number - 1)
    held = daemon(runs, "valley")
    wait_until(lambda: number in decisions(folder, "valley", "accepted"), "valley trains", process)
    held.send_signal(signal.SIGSTOP)
    assert number not in decisions(folder, "valley", "released"), "valley was quicker than this test"
    wait_until(lambda: number in decisions(folder, "north", "released"), f"north trained round {number}", process)
    return held


def hold_valley_back_until_north_has_trained(process, runs: Path, folder: Path, number: int) -> None:
    """The same, with valley's answer held back and nothing in training: who is killed in training has spent for nothing."""
    wait_for_event(process, folder, "round_committed", round=number - 1)
    connector(runs, "valley").send_signal(signal.SIGSTOP)
    wait_until(lambda: number in decisions(folder, "north", "released"), f"north trained round {number}", process)
    wait_until(
        lambda: decisions(folder, "valley", "accepted") == decisions(folder, "valley", "released"),
        "valley trains nothing",
        process,
    )


@pytest.mark.parametrize("victim", [server_app, superlink], ids=["server-app", "superlink"])
def test_a_killed_server_is_started_again_and_goes_on(tmp_path: Path, victim) -> None:
    folder = tmp_path / "hurt"
    with ending_all(tmp_path):
        process = start_run(tmp_path, "hurt", *TWO_SITES, f"training.rounds={ROUNDS}")
        held = hold_valley_until_north_has_trained(process, tmp_path, folder, 2)
        victim(tmp_path).kill()
        wait_for_event(process, folder, "restarting")
        wait_for_event(process, folder, "waiting", nth=2)  # the new server app is there, and its sites are not yet
        held.send_signal(signal.SIGCONT)
        output = outcome(process)
        assert not marked(tmp_path)
    assert_each_round_once(folder, ROUNDS)
    assert 2 in decisions(folder, "north", "resent")
    assert 2 in decisions(folder, "valley", "resent")  # it was trained for the dead server and is not trained again
    assert "starting it again in" in output and "(1 of 5)" in output
    one_version(tmp_path, folder)


def test_everything_is_killed_and_resume_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    with ending_all(tmp_path):
        process = start_run(tmp_path, "cut", *TWO_SITES, f"training.rounds={ROUNDS}")
        hold_valley_back_until_north_has_trained(process, tmp_path, folder, 2)
        second = fedmed("resume", str(folder))
        assert second.returncode == 8
        assert f"another command (process {process.pid}) works on {folder}" in second.stderr
        kill_all(tmp_path)
        process.wait()
        output = outcome(start_fedmed(tmp_path, "resume", str(folder)))
        assert not marked(tmp_path)
    assert_each_round_once(folder, ROUNDS)
    assert 2 in decisions(folder, "north", "resent")
    assert f"going on after round 1 of {ROUNDS}" in output
    one_version(tmp_path, folder)
