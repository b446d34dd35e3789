"""`fedmed data check` and `fedmed-site check-data`: what a manifest, or an importer's source, is made of.

    fedmed-site check-data north-data                   one manifest, before the site joins
    fedmed-site check-data north-train north-test       several: what do they share?
    fedmed data check vqa_rad data/vqa_rad              an importer's source, all its splits
    fedmed data check slake_en data/slake --split-rule image --base fedmed-tiny --json

A name is an importer's unless a folder of that name holds a manifest.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedmed.data.check import Report, TokenCount

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="FOLDER...|NAME SOURCE", help="manifests; or an importer and what it reads", show_default=False
    ),
]
SplitRule = Annotated[str, typer.Option(help="of an importer: official, or image")]
Base = Annotated[str, typer.Option(help="counts tokens too: fedmed-tiny, a folder, or a hub id that is on this disk")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object instead of text")]


def check(targets: Targets, split_rule: SplitRule = "official", base: Base = "", as_json: AsJson = False) -> None:
    """Counts, lengths, image sizes, balance, repeats and leaks of data; exact numbers, for the site's own eyes."""
    from fedmed.data.check import report_lines

    report = _report(targets, split_rule, _tokens_of(base) if base else None)
    for line in [json.dumps(asdict(report))] if as_json else report_lines(report):
        typer.echo(line)


def _report(targets: list[str], split_rule: str, num_tokens: TokenCount | None) -> Report:
    from fedmed.data.check import check_manifests, check_source
    from fedmed.data.importers import IMPORTERS
    from fedmed.data.manifest_line import MANIFEST_NAME
    from fedmed.errors import DataError

    name = targets[0]
    if name not in IMPORTERS or (Path(name) / MANIFEST_NAME).exists():
        return check_manifests([Path(folder) for folder in targets], num_tokens)
    if len(targets) != 2:
        raise DataError(
            f"{name} is an importer, and {len(targets) - 1} sources are given, expected one",
            f"give what it reads: a file or folder such as data/{IMPORTERS[name].filename}",
        )
    return check_source(IMPORTERS[name], Path(targets[1]), split_rule, num_tokens)


def _tokens_of(base: str) -> TokenCount:
    """How many tokens a text has for a base model that is on this disk. Raises ModelError."""
    from fedmed.errors import ModelError
    from fedmed.models.checkpoint import checkpoint_path

    folder = checkpoint_path(base)
    if folder is None:
        raise ModelError(f"base model {base!r} is not on this disk", "give a local folder, or download it first")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # noqa: BLE001  transformers raises whatever its parts raise
        raise ModelError(f"the tokenizer of base model {base!r} cannot be loaded", "is the folder whole?") from None
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
