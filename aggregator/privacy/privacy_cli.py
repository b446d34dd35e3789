"""`fedmed privacy`: what a guarantee costs, and what it is worth. Each command is a few lines over the module that does
the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from fedmed import plan_cli
from fedmed.errors import ConfigError
from fedmed.plan_cli import (
    AsJson,
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

# As in fedmed.training.audit_faults, which imports torch: a help text and a mistake need not wait for that.
FAULTS = ("noise_quarter", "per_record", "batch_clipping", "patient_twice", "forgotten_round")
privacy_app = typer.Typer(no_args_is_help=True, help="What the privacy guarantee costs, and what it is worth.")


@privacy_app.command("plan")
def privacy_plan(
    experiment: Annotated[str, typer.Argument(help="gives what no option does", show_default=False)] = "",
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
    spent: Annotated[
        Path | None, typer.Option("--spent", help="what `fedmed-site budget DIR --public` printed", show_default=False)
    ] = None,
    cohort: Annotated[str, typer.Option(help="one of --spent; default: the site's present one")] = "",
    plot: Annotated[Path | None, typer.Option("--plot", help="FILE.png or FILE.svg", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Find the one value that is not given: epsilon, noise, rounds, local steps or sample rate; and what each round costs.

    fedmed privacy plan --epsilon 4 --rounds 5 --local-steps 10 --patients 1800 --expected-patients 180

    fedmed privacy plan pneumonia --rounds 20 --spent north.json --plot plan.png
    """
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
    from aggregator.privacy.plan_plot import check_format, save_plot
    from aggregator.privacy.spent import read_spent
    from fedmed.config import load_experiment
    from fedmed.held_out_plan import with_evaluation
    from fedmed.privacy.planning import make_plan

    if plot:
        check_format(plot)
    ledger = read_spent(spent, cohort) if spent else None
    config = load_experiment(experiment) if experiment else None
    plan = make_plan(plan_cli.ask(given, config, solve_for, ledger.delta if ledger else None), ledger)
    plan = with_evaluation(plan, config, ledger.cohort if ledger else "")
    plan_cli.show(plan, as_json)
    if plot:
        save_plot(plan, plot)


@privacy_app.command("audit")
def privacy_audit(
    repetitions: Annotated[int, typer.Option(min=1, help="games to play; the bounds grow with them")] = 150,
    fault: Annotated[str, typer.Option(help=f"a fault to put in on purpose: {', '.join(FAULTS)}; or all")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Attack the training path with canary patients: a lower bound on epsilon next to the claimed one (a minute).

    Exits with an error when the bound exceeds the claim. `--fault all` proves the audit itself: it fails when a planted
    fault is not found.
    """
    names = _engines(fault)
    from aggregator.privacy.audit_view import as_rows, line, require_expected, run_audits, table

    audits = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("auditing", total=repetitions * len(names))
        for name, result in run_audits(names, repetitions, lambda: progress.advance(task)):
            audits[name] = result
            progress.console.print(line(name, result), highlight=False)
    if as_json:
        typer.echo(json.dumps(as_rows(audits), indent=2))
    else:
        Console().print(table(audits))
    require_expected(audits)


def _engines(fault: str) -> list[str]:
    """What to audit: the healthy engine, one with a fault, or all."""
    if fault not in ("", "all", *FAULTS):
        raise ConfigError([f"--fault {fault}: expected one of {', '.join(FAULTS)}, or all"])
    return ["healthy", *FAULTS] if fault == "all" else [fault or "healthy"]
