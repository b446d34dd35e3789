"""`fedmed privacy`: what the guarantee is worth. Each command is a few lines over the module that does the work."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from fedmed.errors import ConfigError

# As in fedmed.training.audit_faults, which imports torch: a help text and a mistake need not wait for that.
FAULTS = ("noise_quarter", "per_record", "batch_clipping", "patient_twice", "forgotten_round")
privacy_app = typer.Typer(no_args_is_help=True, help="What the privacy guarantee is worth.")


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
    from aggregator.audit_view import as_rows, require_expected, run_audits, table

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("auditing", total=repetitions * len(names))
        audits = run_audits(names, repetitions, lambda: progress.advance(task))
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
