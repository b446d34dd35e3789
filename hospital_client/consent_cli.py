"""`fedmed-site consent`: who may no longer be trained on.

    fedmed-site consent withdraw north --from ids.txt      one patient id a line; from the next draw on
    fedmed-site consent withdraw north --from -            from stdin
    fedmed-site consent restore north --from ids.txt       undoes a mistake
    fedmed-site consent list north                         dates and counts

Patient ids are never arguments: those stand in the shell's history and in the list of processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hospital_client.settings import SiteFolder

app = typer.Typer(no_args_is_help=True, help="Who may no longer be trained on.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the site's folder", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object instead of text")]
From = Annotated[
    Path, typer.Option("--from", metavar="FILE", help="one patient id a line, UTF-8; - is stdin", show_default=False)
]


@app.command()
def withdraw(directory: Folder, source: From, as_json: AsJson = False) -> None:
    """Leave patients out of every draw from now on, beside a running daemon too."""
    _record("withdraw", directory, source, as_json)


@app.command()
def restore(directory: Folder, source: From, as_json: AsJson = False) -> None:
    """Undo a withdrawal that was a mistake."""
    _record("restore", directory, source, as_json)


@app.command("list")
def list_(directory: Folder, as_json: AsJson = False) -> None:
    """Dates and counts of all changes; never who."""
    from hospital_client.consent import read_consent, withdrawn
    from hospital_client.settings import load_site

    folder = load_site(directory)
    changes = read_consent(folder.consent)
    report: dict[str, Any] = {
        "withdrawn": len(withdrawn(changes)),
        "changes": [{"time": item.time, "kind": item.kind, "patients": len(item.members)} for item in changes],
    }
    if as_json:
        typer.echo(json.dumps(report))
        return
    for item in changes:
        typer.echo(f"{item.time}  {item.kind:8} {_patients(len(item.members))}")
    typer.echo(f"withdrawn now: {report['withdrawn']}")


def _record(kind: str, directory: Path, source: Path, as_json: bool) -> None:
    from hospital_client.consent import audit_to, read_consent, read_members, record, withdrawn
    from hospital_client.settings import load_site

    folder = load_site(directory)
    members = read_members(_read(source), folder.key)
    changed = record(folder.consent, kind, members, audit_to(folder.audit))
    report: dict[str, Any] = {
        "kind": kind,
        "changed": len(changed),
        "unchanged": len(members - changed),
        "not_in_manifest": _not_in_manifest(folder, members),
        "withdrawn": len(withdrawn(read_consent(folder.consent))),
    }
    typer.echo(json.dumps(report)) if as_json else _print(report)


def _read(source: Path) -> bytes:
    from fedmed.errors import DataError

    try:
        return sys.stdin.buffer.read() if str(source) == "-" else source.read_bytes()
    except OSError as error:
        raise DataError(f"the list of patients {source} cannot be read: {error.strerror}") from None


def _not_in_manifest(folder: SiteFolder, members: frozenset[bytes]) -> int | None:
    """How many the present manifests do not hold. None when one cannot be read: consent is recorded all the same."""
    from fedmed.data.manifest import read_pseudonyms
    from fedmed.errors import DataError

    try:
        present = [read_pseudonyms(path, folder.key) for path in (folder.data, folder.held_out) if path is not None]
        return len(members.difference(*present))
    except DataError:
        return None


def _print(report: dict[str, Any]) -> None:
    done, already = (
        ("withdrawn", "withdrawn already") if report["kind"] == "withdraw" else ("restored", "not withdrawn")
    )
    text = f"{_patients(report['changed'])} {done}"
    if report["unchanged"]:
        text += f"; {report['unchanged']} {'was' if report['unchanged'] == 1 else 'were'} {already}"
    if report["not_in_manifest"] is None:
        text += "; the manifest cannot be read, see `fedmed-site check`"
    elif report["not_in_manifest"]:
        text += f"; {report['not_in_manifest']} of those listed not in the present manifest: is the id spelt as there?"
    typer.echo(text)
    typer.echo(f"  withdrawn in all: {report['withdrawn']}; the next draw leaves them out")


def _patients(count: int) -> str:
    return f"{count} patient" if count == 1 else f"{count} patients"
