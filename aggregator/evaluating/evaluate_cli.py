"""`fedmed evaluate` on the command line: options in, a short table out. Imports are lazy, as in aggregator.cli."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="NAME@ALIAS, NAME:VERSION, or a model folder")],
    dataset: Annotated[str, typer.Argument(help="an importer's name, IMPORTER:PATH, phantom, or a manifest folder")],
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    split_rule: Annotated[str, typer.Option(help="official or image, where the data set offers both")] = "official",
    limit: Annotated[int, typer.Option(min=0, help="so many questions at most, the first; 0: all")] = 0,
    shots: Annotated[int, typer.Option(min=0, max=32, help="answered examples of the train split before each")] = 0,
    compare: Annotated[
        list[str] | None, typer.Option(help="another model; may be given again", show_default=False)
    ] = None,
    controls: Annotated[bool, typer.Option(help="ask three times more, for blank, other and no images")] = True,
    model_scores: Annotated[bool, typer.Option(help="try scores that need a model of their own")] = True,
    out: Annotated[
        Path | None, typer.Option(help="folder; default: under RUNS_DIR/evaluations", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="of phantoms, examples in the prompt, shuffled images, resamples")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="of each interval")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, help="questions a forward pass")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="at most so many tokens an answer")] = 64,
    device: str = "auto",
    uri: Annotated[str, typer.Option("--uri", help="MLflow tracking URI; default: sqlite under the runs folder")] = "",
    runs_dir: Annotated[Path, typer.Option("--runs-dir", help="where the sqlite MLflow store lives")] = Path("runs"),
) -> None:
    """Score a model on a data set, with controls, intervals and a report; log it to the model's version."""
    from aggregator.evaluating.evaluate import Options
    from aggregator.evaluating.evaluate import evaluate as evaluate_model
    from aggregator.registry import open_registry

    options = Options(
        split=split,
        split_rule=split_rule,
        limit=limit,
        shots=shots,
        seed=seed,
        controls=controls,
        compare=tuple(compare or ()),
        device=device,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        resamples=resamples,
        model_scores=model_scores,
    )
    folder = out or runs_dir / "evaluations" / evaluation_folder(
        model, dataset, options.split, options.split_rule, options.shots, options.limit
    )
    registry = open_registry(uri, runs_dir.resolve())
    results = evaluate_model(model, dataset, options, registry, folder, lambda text: typer.echo(text, err=True))
    typer.echo(table(results))
    typer.echo(f"\n{folder / 'report.html'}")


def table(results: Mapping[str, Any]) -> str:
    """The scores that are reported, each with the published ones under it, and what has to be said about them."""
    lines = [f"{'score':32} {'estimate':>9}  {'95 % interval':16} {'items':>6} {'patients':>8}"]
    for name, row in results["scores"].items():
        if not row["legacy"]:
            lines.append(_line(name, row))
            lines += [
                _line(f"  {old}", results["scores"][old]) for old, new in results["corrected"].items() if new == name
            ]
    lines += [f"{name:32} unavailable: {why['reason']}" for name, why in results["unavailable"].items()]
    return "\n".join([*lines, "", *results["verdicts"]])


def _line(name: str, row: Mapping[str, Any]) -> str:
    estimate = "-" if row["estimate"] is None else f"{row['estimate']:.4f}"
    interval = "-" if row["low"] is None else f"{row['low']:.4f}, {row['high']:.4f}"
    patients = "-" if row["patients"] is None else row["patients"]
    return f"{name:32} {estimate:>9}  {interval:16} {row['items']:6} {patients:>8}"


def evaluation_folder(model: str, dataset: str, split: str, split_rule: str, shots: int, limit: int) -> str:
    """The folder of an evaluation: another one for other questions or prompts. Other options alone, such as the seed, and
    another version under the same alias take an earlier one's place; MLflow keeps each version's own."""
    from aggregator.evaluating.record import asked_as

    words = [model, dataset, split, split_rule, asked_as(shots, limit)]
    return re.sub(r"[^A-Za-z0-9_.@-]+", "-", "-".join(words)).strip("-.")
