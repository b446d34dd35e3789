"""The hospital's command line.

    fedmed-site import pneumoniamnist data/pneumoniamnist.npz north-data
    fedmed-site import dicom archive/ north-data --reports reports.csv      files of the hospital's own, and a table
    fedmed-site combine north-data captions questions      several manifests as one
    fedmed-site init north --name north --data north-data --set policy.epsilon_budget=4
    fedmed-site check north        every fault before the federation finds it; exit code not 0 on a finding
    fedmed-site check-data north-data      what its data is made of: counts, lengths, balance, repeats, leaks
    fedmed-site start north        serves until SIGTERM or Ctrl-C
    fedmed-site status north       what the daemon is doing
    fedmed-site budget north       spent, reserved and left, per cohort and per run
    fedmed-site keygen north       a node key for the consortium; fedmed-site join KIT north puts its kit into place
    fedmed-site connect north      the site in its federation, until SIGTERM or Ctrl-C
    fedmed-site consent withdraw north --from ids.txt      those patients are left out from the next draw on
    fedmed-site personal export north RUN OUT          the site's own model, where the method leaves it a part
    fedmed-site plan north --experiment pneumonia      what that run would cost the patients, and whether it fits

A fault that a person can mend is one line and a hint, with the exit code of its class in fedmed.errors.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedmed import check_cli, command_line, plan_cli
from fedmed.command_line import print_error
from fedmed.errors import FedMedError
from fedmed.plan_cli import (
    Delta,
    Epsilon,
    ExpectedPatients,
    Given,
    LocalSteps,
    MaxPatients,
    MetricsNoise,
    Noise,
    Patients,
    Rounds,
    SampleRate,
    SolveFor,
)
from hospital_client import combine_cli, connect_cli, connection_cli, consent_cli, import_cli, personal_cli
from hospital_client.consent_cli import AsJson, Folder

# Everything else is imported inside the commands: --help must be quick, and torch is for `start` alone.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="A hospital's site.")
app.add_typer(consent_cli.app, name="consent")
app.add_typer(personal_cli.app, name="personal")
app.command()(combine_cli.combine)
app.command("check-data")(check_cli.check)
app.add_typer(import_cli.app, name="import")
app.command()(connection_cli.keygen)
app.command()(connection_cli.join)
app.command()(connect_cli.connect)


def main() -> None:
    """Entry point of `fedmed-site`."""
    command_line.run(app)


@app.command()
def init(
    directory: Folder,
    name: Annotated[str, typer.Option(help="the site's name in every report")],
    data: Annotated[Path, typer.Option(help="the manifest's folder")],
    socket: Annotated[Path | None, typer.Option(help="where the relay calls; default DIR/site.sock")] = None,
    cohort: Annotated[str, typer.Option(help="whose privacy the ledger counts; default NAME")] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="policy.KEY=VALUE or site.KEY=VALUE, any number")
    ] = None,
) -> None:
    """Make a site's folder: site.yaml, policy.yaml, its key, an empty ledger and its witness."""
    from hospital_client.setup import create_site, parse_settings

    site, policy = parse_settings(settings or [])
    root = directory.absolute()
    given = {"name": name, "cohort": cohort or name, "data": _inside(data.absolute(), root)}
    if socket is not None:
        given["socket"] = _inside(socket.absolute(), root)
    folder = create_site(root, {**given, **site}, policy)
    typer.echo(f"made site {folder.settings.name} in {directory}")
    typer.echo(f"  next: read {directory / 'policy.yaml'}, then `fedmed-site check {directory}`")
    typer.echo("  keep a backup of site.key: without it the ledger cannot be verified and the site cannot train")
    typer.echo(f"  the ledger's witness is in {folder.witness}: best on another disk, and in no backup of {directory}")


@app.command()
def check(directory: Folder) -> None:
    """Look at policy, files, manifest, base models, ledger, consent and connection without starting anything."""
    from hospital_client.checks import check_site

    faults: list[FedMedError] = []
    for finding in check_site(directory):
        if finding.error is None:
            typer.echo(f"ok    {finding.thing}: {finding.text}")
            for line in finding.warnings:
                typer.echo(f"WARN  {finding.thing}: {line}", err=True)
        else:
            typer.echo(f"FAULT {finding.thing}")
            print_error(finding.error)
            faults.append(finding.error)
    if faults:
        raise typer.Exit(faults[0].exit_code)


@app.command()
def start(directory: Folder) -> None:
    """Serve the site until SIGTERM or Ctrl-C; says when it is ready."""
    from hospital_client.daemon import run_daemon
    from hospital_client.settings import load_site

    run_daemon(load_site(directory), typer.echo)
    # Winding down an interpreter that holds torch takes seconds, tens of them on a busy machine, while the sender of SIGTERM
    # waits: everything is on disk and closed, so the process ends here.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@app.command()
def status(directory: Folder, as_json: AsJson = False) -> None:
    """What the running daemon is doing."""
    from fedmed.wire import channel
    from hospital_client.budget import epsilon_text
    from hospital_client.settings import load_site

    reply = channel.status(load_site(directory).socket)
    shown: dict[str, Any] = {field.name: getattr(reply, field.name) for field in reply.DESCRIPTOR.fields}
    if as_json:
        typer.echo(json.dumps(shown))
        return
    for key, value in shown.items():
        typer.echo(f"{key:15} {epsilon_text(value) if key == 'epsilon_spent' else value}")


@app.command()
def budget(
    directory: Folder,
    as_json: AsJson = False,
    public: Annotated[bool, typer.Option("--public", help="JSON for the consortium to plan with: tasks alone")] = False,
) -> None:
    """What the ledger says was spent, is reserved, and is left: per cohort and per run."""
    from hospital_client.budget import budget_lines, budget_report, public_report
    from hospital_client.settings import load_site

    folder = load_site(directory)
    report = public_report(folder) if public else budget_report(folder)
    for line in [json.dumps(report)] if as_json or public else budget_lines(report):
        typer.echo(line)


@app.command()
def plan(
    directory: Folder,
    experiment: Annotated[str, typer.Option("--experiment", help="gives what no option does", show_default=False)] = "",
    epsilon: Epsilon = None,
    noise: Noise = None,
    rounds: Rounds = None,
    local_steps: LocalSteps = None,
    sample_rate: SampleRate = None,
    patients: Patients = None,
    expected_patients: ExpectedPatients = None,
    delta: Delta = None,
    metrics_noise: MetricsNoise = None,
    max_patients: MaxPatients = None,
    solve_for: SolveFor = "",
    as_json: AsJson = False,
) -> None:
    """Whether a run would fit the budget that the patients have left, and how many rounds would."""
    from fedmed.config import load_experiment
    from hospital_client.budget import present_entries
    from hospital_client.plan import site_plan
    from hospital_client.settings import load_site

    given = Given(
        epsilon=epsilon,
        noise=noise,
        rounds=rounds,
        local_steps=local_steps,
        sample_rate=sample_rate,
        patients=patients,
        expected_patients=expected_patients,
        delta=delta,
        metrics_noise=metrics_noise,
        max_patients=max_patients,
    )
    folder = load_site(directory)
    config = load_experiment(experiment) if experiment else None
    question = plan_cli.ask(given, config, solve_for, folder.policy.delta)
    plan_cli.show(site_plan(question, folder, present_entries(folder), config), as_json)


def _inside(path: Path, root: Path) -> str:
    """A path as site.yaml holds it: relative where it lies in the site's folder."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


if __name__ == "__main__":
    main()
