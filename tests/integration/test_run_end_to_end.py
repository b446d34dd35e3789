"""`fedmed run` as a user runs it: real processes over loopback gRPC, from a data set to an answered question."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers_hospitals import start_daemon, start_link, start_node

from aggregator.runs.processes import ProcessGroup
from aggregator.superlink.launcher import free_ports

WAIT_S = 300  # a machine that does other things at the same time
SMALL = [
    "data.source=phantom",
    "data.train_patients=150",
    "data.test_patients=30",
    "training.local_steps=2",
    "privacy.sample_rate=0.2",
]


def start_run(runs: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    """`fedmed run demo` with a small phantom task, its output in a pipe."""
    command = [sys.executable, "-m", "aggregator.cli", "run", "demo", f"name={name}", *SMALL, *overrides]
    environment = os.environ | {"FEDMED_TEST_MARK": str(runs), "MLFLOW_TRACKING_PASSWORD": "s3cret"}
    return subprocess.Popen(
        [*command, "--runs-dir", str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def fedmed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "aggregator.cli", *arguments], capture_output=True, text=True)


def end(process: subprocess.Popen[str]) -> None:
    """Whatever a failed test left: SIGTERM, upon which `fedmed run` ends what it started."""
    if process.poll() is None:
        process.terminate()
        process.wait(timeout=60)


def wait_for_event(process: subprocess.Popen[str], events: Path, kind: str, **fields: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and process.poll() is None:
        lines = events.read_text().splitlines() if events.exists() else []
        for event in (json.loads(line) for line in lines if line.endswith("}")):
            if event["kind"] == kind and all(event[key] == value for key, value in fields.items()):
                return
        time.sleep(0.1)
    raise AssertionError(f"no event {kind} {fields}: {process.stdout.read() if process.poll() is not None else ''}")


def left_running(runs: Path) -> list[list[str]]:
    """Command lines of processes that carry this run's mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FEDMED_TEST_MARK") == str(runs):
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found


def find_daemon(runs: Path, site: str) -> psutil.Process:
    for process in psutil.process_iter():
        try:
            if process.environ().get("FEDMED_TEST_MARK") == str(runs) and process.cmdline()[-1].endswith(f"/{site}"):
                return process
        except (psutil.Error, IndexError):
            continue
    raise AssertionError(f"no daemon of {site}")


def who_knows_the_registry_password(runs: Path) -> list[int]:
    """Process ids of this run's processes that have it in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get("FEDMED_TEST_MARK") == str(runs) and "MLFLOW_TRACKING_PASSWORD" in environment:
                found.append(process.pid)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two rounds in which one of the three hospitals dies in the second."""
    runs = tmp_path_factory.mktemp("runs")
    process = start_run(runs, "killed", "training.rounds=2")
    try:
        wait_for_event(process, runs / "killed" / "events.jsonl", "round_started", round=2)
        knowing = who_knows_the_registry_password(runs)
        find_daemon(runs, "harbour").kill()
        output, _ = process.communicate(timeout=WAIT_S)
    finally:
        end(process)
    assert process.returncode == 0, output
    assert knowing == [process.pid]
    return runs, output


def test_report_has_what_it_promises(finished: tuple[Path, str]) -> None:
    runs, _ = finished
    report = json.loads((runs / "killed" / "report.json").read_text())
    assert report["experiment"] == "killed"
    assert report["transport"] == "grpc"
    assert len(report["base_model"]["sha256"]) == 64
    assert {site["name"] for site in report["sites"]} == {"north", "harbour", "valley"}
    assert all(0 < site["epsilon"] <= 4 for site in report["sites"])
    assert [item["round"] for item in report["rounds"]] == [1, 2]
    for item in report["rounds"]:
        assert 0 <= item["test_accuracy"] <= 1
        assert item["bytes_up"] > 0
        assert item["bytes_down"] > 0
        assert item["seconds"] >= item["reply_seconds"] > 0
    assert report["served"]["answer"]
    assert report["registry"]["version"]
    assert "<svg" in (runs / "killed" / "report.html").read_text()


def test_a_killed_site_is_left_out_and_named(finished: tuple[Path, str]) -> None:
    runs, output = finished
    report = json.loads((runs / "killed" / "report.json").read_text())
    assert [item["replies"] for item in report["rounds"]] == [3, 2]
    joined = {site["name"]: site["rounds_joined"] for site in report["sites"]}
    assert joined == {"north": 2, "harbour": 1, "valley": 2}
    events = [json.loads(line) for line in (runs / "killed" / "events.jsonl").read_text().splitlines()]
    assert any(event["kind"] == "left_out" and event["site"] == "harbour" for event in events)
    assert "harbour" in output


def test_nothing_is_left_running(finished: tuple[Path, str]) -> None:
    assert left_running(finished[0]) == []


def test_plain_lines_without_a_terminal(finished: tuple[Path, str]) -> None:
    _, output = finished
    assert "\x1b[" not in output
    assert "epsilon" in output


def test_each_ledger_holds_what_was_spent(finished: tuple[Path, str]) -> None:
    runs, _ = finished
    site = runs / "killed" / "sites" / "north"
    done = subprocess.run(
        [sys.executable, "-m", "hospital_client.cli", "budget", str(site), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert '"spent"' in done.stdout


def test_registry_commands_read_the_run(finished: tuple[Path, str]) -> None:
    runs, _ = finished
    for command in (["list"], ["show", "fedmed:1"]):
        done = subprocess.run(
            [sys.executable, "-m", "aggregator.cli", "registry", *command, "--runs-dir", str(runs)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "fedmed" in done.stdout


def test_no_patient_field_in_logs_or_reports(finished: tuple[Path, str]) -> None:
    runs, output = finished
    folder = runs / "killed"
    patients = set()
    for manifest in folder.glob("sites/*/data/manifest.jsonl"):
        patients |= {json.loads(line)["patient"] for line in manifest.read_text().splitlines()}
    assert patients
    written = [path for path in folder.rglob("*") if path.suffix in (".log", ".json", ".html")]
    written += [*folder.glob("sites/*/*.jsonl"), folder / "events.jsonl"]
    text = output + "".join(path.read_text(errors="replace") for path in written)
    long_ids = [patient for patient in patients if len(patient) >= 6]
    assert not [patient for patient in long_ids if f'"{patient}"' in text or f" {patient} " in text]


def test_resume_does_the_second_half_again(finished: tuple[Path, str]) -> None:
    """A run whose end was lost: the merged model and the reports are made again, and no second version of them."""
    runs, _ = finished
    folder = runs / "killed"
    before = json.loads((folder / "report.json").read_text())
    shutil.rmtree(folder / "model")
    (folder / "report.json").unlink()
    done = fedmed("resume", str(folder))
    assert done.returncode == 0, done.stderr
    after = json.loads((folder / "report.json").read_text())
    assert after["registry"]["version"] == before["registry"]["version"]
    assert after["final_accuracy"] == before["final_accuracy"]
    assert after["served"]["answer"]


def test_sites_started_by_hand(tmp_path: Path) -> None:
    """The README's commands: hospitals and SuperLink are there already, and still there when the run has ended."""
    names = ["north", "valley"]
    overrides = [*SMALL, "name=joined", f"partition.sites=[{','.join(names)}]", "training.rounds=1"]
    assert fedmed("data", "split", "demo", str(tmp_path / "data"), *overrides).returncode == 0
    fleet, control = (f"127.0.0.1:{port}" for port in free_ports(2))
    with ProcessGroup(tmp_path / "logs") as group:
        started = [start_link(group, tmp_path / "link", fleet, control)]
        for name in names:
            site = tmp_path / name
            started.append(start_daemon(group, site, tmp_path / "data" / "sites" / name / "data"))
            started.append(start_node(group, site, fleet))
        done = fedmed("run", "demo", *overrides, "--superlink", control, "--runs-dir", str(tmp_path / "runs"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert all(item.process.poll() is None for item in started)
    report = json.loads((tmp_path / "runs" / "joined" / "report.json").read_text())
    assert {site["name"] for site in report["sites"]} == set(names)
    assert [item["replies"] for item in report["rounds"]] == [2]
    assert not (tmp_path / "runs" / "joined" / "sites").exists()


def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    process = start_run(tmp_path, "interrupted", "training.rounds=50")
    try:
        wait_for_event(process, tmp_path / "interrupted" / "events.jsonl", "round_started", round=1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        end(process)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert left_running(tmp_path) == []
