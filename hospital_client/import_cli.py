"""`fedmed-site import`: a data set, or an archive of the hospital's own, as a manifest that a site can train on.

fedmed-site import pneumoniamnist data/pneumoniamnist.npz north-data        any importer of `fedmed data list`
fedmed-site import dicom archive/ north-data --reports reports.csv          DICOM files and a table: docs/data.md
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fedmed.errors import ConfigError, DataError, FedMedError

if TYPE_CHECKING:
    from hospital_client.dicom.display import Window
    from hospital_client.dicom.gate import Gate
    from hospital_client.dicom.importer import DicomImport

_ANY = "NAME"


class _ByName(TyperGroup):
    """A group whose command NAME takes every name that is no command of its own, with the name as first argument."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            return args[0], self.commands[_ANY], args
        return super().resolve_command(ctx, args)


app = typer.Typer(no_args_is_help=True, cls=_ByName, help="Turn a data set into a manifest that a site can train on.")
Source = Annotated[Path, typer.Argument(metavar="SOURCE", help="the file or folder to read", show_default=False)]
Destination = Annotated[Path, typer.Argument(metavar="DEST", help="the manifest's folder to make", show_default=False)]
SplitName = Annotated[str, typer.Option(help="train, val or test")]


@app.command(_ANY)
def by_name(
    name: Annotated[str, typer.Argument(metavar="NAME", help="an importer, such as pneumoniamnist or vqa_rad")],
    source: Source,
    destination: Destination,
    split: SplitName = "train",
    split_rule: Annotated[str, typer.Option(help="official, or image: no image in two splits")] = "official",
) -> None:
    """Any importer of `fedmed data list`."""
    from fedmed.data.importers import Tally, importer
    from fedmed.data.manifest import write_manifest

    tally = Tally()
    examples = importer(name).stream(source, tally, split=split, split_rule=split_rule)
    try:
        manifest = write_manifest(destination, examples)
    except DataError:
        if not tally.rows_read or tally.rows_read > tally.left_out:
            raise
        raise DataError(
            f"none of the {tally.rows_read} {split} rows of {name} can be used: {_in_line(tally.quarantined)}",
            "look at the first rows of the source beside the layout in docs/data.md",
        ) from None
    without = sum(not example.images for example in manifest.examples)
    typer.echo(
        f"{tally.rows_read} {split} rows read, {len(manifest.examples)} examples of {manifest.num_patients} patients"
    )
    typer.echo(f"  {tally.left_out} rows left out" + (f"; {_in_line(tally.quarantined)}" if tally.left_out else ""))
    typer.echo(f"  {without} examples without an image")
    typer.echo(f"  manifest in {destination}")


@app.command()
def dicom(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="the archive's folder", show_default=False)],
    destination: Destination,
    reports: Annotated[
        Path, typer.Option(help="CSV: study, accession or patient; question and answer, or findings and impression")
    ],
    columns: Annotated[
        list[str] | None, typer.Option("--column", help="ROLE=NAME: a column that is not named as its role")
    ] = None,
    question: Annotated[str, typer.Option(help="for rows without one", show_default=False)] = "",
    split: SplitName = "train",
    modalities: Annotated[list[str] | None, typer.Option("--modality", help="default CT, MR, CR, DX, MG, PT")] = None,
    window: Annotated[str, typer.Option(help="which of a file's windows, or CENTER/WIDTH, such as 40/400")] = "1",
    montage: Annotated[str, typer.Option(help="ROWSxCOLUMNS of a series; 1x1 is the middle slice")] = "1x1",
    max_side: Annotated[int, typer.Option(min=0, help="larger pictures are made smaller; 0 keeps their size")] = 1024,
    max_images: Annotated[int, typer.Option(min=1, help="of a study, in the order of its series' numbers")] = 8,
    gate: Annotated[
        list[str] | None, typer.Option(help="KIND=refuse or KIND=report: what a finding does; see docs/data.md")
    ] = None,
    gate_report: Annotated[Path | None, typer.Option(help="a JSON file to write the findings into")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="read everything, write no manifest")] = False,
) -> None:
    """CT, MR, X-ray and PET files with a table of questions or reports."""
    _require_pydicom()
    from fedmed.data.importers.base import require_split
    from fedmed.data.manifest import write_manifest
    from hospital_client.dicom.gate import Gate, parse_policy
    from hospital_client.dicom.importer import MODALITIES, DicomImport
    from hospital_client.dicom.pictures import Look
    from hospital_client.dicom.reports import Table, parse_columns

    if gate_report is not None and not gate_report.parent.is_dir():
        raise DataError(
            f"{gate_report} cannot be written: {gate_report.parent} is not a folder", "make that folder first"
        )
    kind = require_split("dicom", split, "official", rules=("official",))
    table = Table(reports, parse_columns(columns or []), question, kind)
    look = Look(_window(window), _montage(montage), max_side)
    guard = Gate(parse_policy(gate or []))
    run = DicomImport(source, table, look, guard, tuple(name.upper() for name in modalities or MODALITIES), max_images)
    try:
        if dry_run:
            written = f"{sum(1 for _ in run.examples())} examples, none written"
        else:
            manifest = write_manifest(destination, run.examples())
            written = (
                f"{len(manifest.examples)} examples of {manifest.num_patients} patients, manifest in {destination}"
            )
        typer.echo(f"{run.tally.rows_read} rows read: {written}")
    except DataError:
        if not run.tally.rows_read or run.tally.rows_read > run.tally.left_out:
            raise
        raise DataError(
            f"none of the {run.tally.rows_read} rows of {reports.name} can be used: {_in_line(run.tally.quarantined)}",
            "the lines above say what the archive holds; docs/data.md says how rows join it",
        ) from None
    finally:
        _tell(run, guard, gate_report)


def _require_pydicom() -> None:
    if importlib.util.find_spec("pydicom") is None:
        raise FedMedError(
            "pydicom is not installed", "install FedMed with what a site needs: pip install 'fedmed[site]'"
        )


def _window(text: str) -> Window:
    from hospital_client.dicom.display import Window

    if re.fullmatch(r"[1-9]\d?", text):
        return Window(index=int(text) - 1)
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", text)
    if found is None or float(found[2]) < 1:
        raise ConfigError([f"--window {text!r} is neither a number from 1 on nor CENTER/WIDTH"], "for example: 40/400")
    return Window(center=float(found[1]), width=float(found[2]))


def _montage(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9])x([1-9])", text)
    if found is None:
        raise ConfigError([f"--montage {text!r} is not ROWSxCOLUMNS of 1 to 9 each"], "for example: 3x3")
    return int(found[1]), int(found[2])


def _tell(run: DicomImport, gate: Gate, target: Path | None) -> None:
    """What was read and left out, and what the gate found: after a failure too, since it may say why."""
    if target is not None:
        target.write_text(json.dumps(gate.report(), indent=1) + "\n", encoding="utf-8")
    if not run.archive.files:
        return
    archive = run.archive
    typer.echo(f"  files: {archive.files}, of {len(archive.studies)} studies" + _reasons(archive.left_out))
    typer.echo(f"  series left out: {run.series_left_out.total()}" + _reasons(run.series_left_out))
    if run.series_beyond:
        typer.echo(f"  series beyond --max-images: {run.series_beyond}")
    typer.echo(f"  rows left out: {run.tally.left_out}" + _reasons(run.tally.quarantined))
    typer.echo(f"  studies that no row asks for: {run.studies_unmatched}")
    typer.echo(f"  de-identification gate: {gate.files} files, {gate.rows} rows looked at")
    if gate.said_removed:
        typer.echo(f"    {gate.said_removed} files say PatientIdentityRemoved")
    for kind, policy in gate.policy.items():
        most = ", ".join(f"{tag} {count}" for tag, count in gate.tags.get(kind, Counter()).most_common(3))
        seen = gate.rows if kind.startswith("text-") and kind != "text-in-tags" else gate.files
        found = f"{gate.found[kind]} ({policy}): {most}" if most else "no finding" if seen else "nothing looked at"
        typer.echo(f"    {kind:17} {found}")


def _reasons(counts: Counter[str]) -> str:
    return "".join(f"\n    {count:6} {why}" for why, count in counts.most_common())


def _in_line(counts: Counter[str]) -> str:
    return "; ".join(f"{why}: {count}" for why, count in sorted(counts.items()))
