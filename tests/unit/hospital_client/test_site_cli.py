"""fedmed-site init, check, budget, import: what a person at the hospital sees, good input and bad."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedmed.data.manifest import load_manifest, write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.errors import ConfigError, FederationError, FedMedError, LedgerError
from hospital_client.cli import app
from hospital_client.fakes import BASE_SHA256
from hospital_client.ledger import Ledger, Spending
from hospital_client.settings import load_site
from hospital_client.setup import create_site


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_of(*arguments: str | Path) -> FedMedError:
    error = run(*arguments).exception
    assert isinstance(error, FedMedError), error
    return error


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site with a base model folder that only has a hash, and 25 phantom patients."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    write_manifest(tmp_path / "data", phantom_examples(25, 0, domain="hospital", split="train"))
    result = run(
        "init", tmp_path / "north", "--name", "north", "--data", tmp_path / "data",
        "--socket", tmp_path / "n.sock", "--set", f"site.base_models={{fedmed-tiny: {base}}}",
        "--set", "policy.epsilon_budget=4", "--set", "site.socket_mode=0600",
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    return tmp_path / "north"


def spend(site: Path, *, noise: float = 1.0, commit: bool = True, run: str = "run-1") -> None:
    folder = load_site(site)
    ledger = Ledger(folder.ledger)
    spending = Spending("north", run, 1, "a" * 64, noise, 0.1, 10, 1e-5)
    reservation = ledger.reserve(spending, budget=8.0, delta=1e-5, fingerprint="f")
    if commit:
        ledger.commit(reservation, "r" * 64)
    ledger.close()


def test_init_makes_a_closed_folder_with_commented_files(site: Path) -> None:
    folder = load_site(site)
    assert (folder.settings.name, folder.settings.cohort, folder.socket_mode) == ("north", "north", 0o600)
    assert folder.policy.epsilon_budget == 4.0
    assert len(folder.policy.base_models) == 1
    assert "never refunded" in (site / "policy.yaml").read_text()
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in [site, *site.iterdir()]}
    assert modes.pop("north") == "0o700"
    assert set(modes.values()) == {"0o600"}


def test_check_is_happy_with_a_good_site(site: Path) -> None:
    result = run("check", site)
    assert result.exit_code == 0, result.output
    assert "25 patients" in result.output
    assert result.output.count("ok ") == 9


@pytest.mark.parametrize(
    ("spoil", "thing", "said"),
    [
        (lambda site: (site.parent / "data/manifest.jsonl").open("a").write("{broken\n"), "manifest", "line "),
        (lambda site: next((site.parent / "data/images").iterdir()).unlink(), "manifest", "line "),
        (lambda site: (site.parent / "base/config.json").write_text("{ }"), "base models", "does not allow"),
        (lambda site: (site.parent / "north.witness/ledger.jsonl").unlink(), "ledger", "witness"),
        (lambda site: (site.parent / "north.witness/consent.jsonl").unlink(), "consent", "witness"),
        (lambda site: (site / "consent.jsonl").unlink(), "consent", "cannot be opened"),
        (lambda site: (site / "ledger.jsonl").write_text("x\nx\n"), "ledger", "line 1"),
        (lambda site: site.chmod(0o755), "folder", "0755"),
        (lambda site: (site / "site.key").chmod(0o644), "site files", "chmod 600"),
        (lambda site: (site / "site.key").unlink(), "site files", "site.key"),
    ],
)  # fmt: skip
def test_check_names_each_fault_and_fails(site: Path, spoil: Any, thing: str, said: str) -> None:
    spoil(site)
    result = run("check", site)
    assert result.exit_code > 0
    assert f"FAULT {thing}" in result.output
    assert said in result.output
    assert "hint:" in result.output


def test_an_unreadable_image_is_quarantined_and_counted(site: Path) -> None:
    next((site.parent / "data/images").iterdir()).write_bytes(b"not an image")
    result = run("check", site)
    assert result.exit_code == 0
    assert " 0 quarantined" not in result.output


def test_every_problem_of_both_files_is_named_at_once(site: Path) -> None:
    for name, old, new in [
        ("site.yaml", "device: ", "device: gpu # "),
        ("site.yaml", "physical_batch: 0 ", "physical_batch: -1 "),
        ("policy.yaml", "max_rank: 64", "max_rnk: 64"),
        ("policy.yaml", "base_models: [", "base_models: [abc, "),
    ]:
        path = site / name
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_site(site)
    text = str(caught.value)
    for named in ("site.yaml: device='gpu'", "physical_batch=-1", "max_rnk: unknown", "max_rank: missing"):
        assert named in text


def test_budget_shows_spent_reserved_and_left_per_cohort_and_run(site: Path) -> None:
    spend(site)
    spend(site, commit=False, run="run-2")
    report = json.loads(run("budget", site, "--json").output)
    (cohort,) = report["cohorts"]
    assert report["budget"] == 4.0
    assert cohort["spent"] > 0
    assert cohort["reserved"] > 0
    assert cohort["left"] == pytest.approx(4.0 - cohort["spent"] - cohort["reserved"])
    assert [(item["run"], item["rounds_committed"], item["rounds_reserved"]) for item in cohort["runs"]] == [
        ("run-1", 1, 0),
        ("run-2", 0, 1),
    ]
    assert "1 + 1 reserved" in run("budget", site).output


def test_budget_follows_the_patients_of_a_renamed_cohort_and_counts_who_withdrew(site: Path) -> None:
    folder = load_site(site)
    patients = load_manifest(folder.data)
    ledger = Ledger(folder.ledger)
    ledger.enrol("north", frozenset(patients.pseudonyms(folder.key)))
    ledger.close()
    spend(site)
    first = patients.examples[0].patient
    assert CliRunner().invoke(app, ["consent", "withdraw", str(site), "--from", "-"], input=first).exit_code == 0
    (site / "site.yaml").write_text((site / "site.yaml").read_text().replace('cohort: "north"', 'cohort: "fresh"'))
    report = json.loads(run("budget", site, "--json").output)
    assert (report["cohort"], report["generation"], report["withdrawn"]) == ("fresh", 3, 1)
    fresh, north = report["cohorts"]
    assert fresh["spent"] == north["spent"] > 0
    assert (fresh["shares_patients_with"], fresh["patients"], fresh["withdrawn"]) == (["north"], 25, 1)
    shown = run("budget", site).output
    assert "holds patients of north: what that spent is counted here too" in shown
    assert "withdrew consent and not drawn: 1 of its 25 patients" in shown
    checked = run("check", site).output
    assert "consent: withdrawn by 1 patients, 1 of them in the present manifest" in checked
    assert "1 tasks, epsilon 0 of" not in checked


def test_a_site_folder_put_back_from_its_backup_is_noticed_by_every_command(site: Path) -> None:
    backup = site.with_name("backup")
    shutil.copytree(site, backup)
    spend(site)
    shutil.rmtree(site)
    backup.rename(site)
    assert (
        "ledger.jsonl was put back from a backup: it ends at line 0, its witness has line 2"
        in run("check", site).output
    )
    error = error_of("budget", site)
    assert isinstance(error, LedgerError)
    subprocess.run(["sh", "-c", error.hint.split("`")[1]], check=True)
    assert "1 tasks" in run("check", site).output


def test_the_witness_lies_outside_the_sites_folder(site: Path, tmp_path: Path) -> None:
    assert load_site(site).witness == tmp_path / "north.witness"
    for place, said in ((".", "lies in"), ("../x/copy", "lies in"), ("../north.witness", "exists already")):
        error = error_of("init", tmp_path / "x", "--name", "x", "--data", tmp_path, "--set", f"site.witness={place}")
        assert said in error.message
    (tmp_path / "file").touch()
    error = error_of("init", tmp_path / "y", "--name", "y", "--data", tmp_path, "--set", "site.witness=../file/w")
    assert "cannot be made" in error.message
    assert not list((tmp_path / "y").iterdir())


def test_budget_without_a_manifest_counts_what_the_ledger_knows(site: Path) -> None:
    spend(site)
    (site.parent / "data/manifest.jsonl").write_text("{broken")
    (site / "site.yaml").write_text((site / "site.yaml").read_text().replace('cohort: "north"', 'cohort: "fresh"'))
    fresh, north = json.loads(run("budget", site, "--json").output)["cohorts"]
    assert fresh["spent"] == north["spent"] > 0  # nobody knows whose patients they are: fail closed


def test_budget_says_infinite_after_a_task_without_privacy(site: Path) -> None:
    spend(site, noise=0.0)
    assert "infinite" in run("budget", site).output
    assert json.loads(run("budget", site, "--json").output)["cohorts"][0]["spent"] == -1.0
    result = run("check", site)
    assert "nothing left" in result.output
    assert result.exit_code > 0


def test_init_refuses_a_second_time_and_leaves_nothing_after_a_bad_setting(site: Path, tmp_path: Path) -> None:
    key = (site / "site.key").read_bytes()
    assert "holds a site already" in str(error_of("init", site, "--name", "n", "--data", tmp_path))
    assert (site / "site.key").read_bytes() == key
    for setting in ("policy.max_rnk=3", "policy.max_rank=0", "site.base_models={a: /nowhere}", "nonsense"):
        assert isinstance(error_of("init", tmp_path / "x", "--name", "n", "--data", "d", "--set", setting), ConfigError)
        assert not (tmp_path / "x").exists() or not list((tmp_path / "x").iterdir())


def test_a_ledger_left_behind_is_never_started_anew(site: Path) -> None:
    for name in ("site.yaml", "policy.yaml", "site.key", "ledger.jsonl", "consent.jsonl"):
        (site / name).unlink()
    given = {"name": "n", "cohort": "n", "data": "d"}
    with pytest.raises(LedgerError, match=r"north\.witness/ledger\.jsonl exists already"):
        create_site(site, given, {"base_models": f"[{BASE_SHA256}]"})
    assert not list(site.iterdir())
    (site / "consent.jsonl").touch()
    with pytest.raises(ConfigError, match="holds a site already"):
        create_site(site, given, {"base_models": f"[{BASE_SHA256}]"})


def test_status_without_a_daemon_says_what_to_do(site: Path) -> None:
    error = error_of("status", site)
    assert isinstance(error, FederationError)
    assert "not running" in error.message
    assert "fedmed-site start" in error.hint


def test_a_folder_that_is_no_site(tmp_path: Path) -> None:
    for command in ("check", "start", "status", "budget"):
        result = run(command, tmp_path)
        text = result.output + str(result.exception)
        assert result.exit_code > 0
        assert "fedmed-site init" in text or "not a site" in text


def test_a_users_mistake_is_two_lines_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hospital_client.cli", "start", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == ConfigError.exit_code
    assert done.stderr.startswith("error: ")
    assert "  hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_help_loads_no_torch() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from hospital_client.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "assert not {'torch', 'transformers', 'grpc'} & set(sys.modules)\n"
        "import hospital_client.daemon, hospital_client.fakes\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_import_names_what_it_does_not_know(tmp_path: Path) -> None:
    assert "unknown data source" in str(error_of("import", "no_such_set", tmp_path, tmp_path / "out"))
