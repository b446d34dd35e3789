"""`fedmed`: the consortium's command line. Each command is a few lines over the module that does the work.

Imports are lazy: `fedmed --help` must not load torch or MLflow. A user's mistake ends in two lines on stderr (what is
wrong, what to do) and the exit code of its error class, never in a traceback.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from aggregator.agent.agent_cli import agent
from aggregator.evaluating.evaluate_cli import evaluate
from aggregator.joining.provision_cli import provision_app, superlink
from aggregator.methods import load_federation
from aggregator.privacy.privacy_cli import privacy_app
from fedmed import check_cli, command_line
from fedmed.config import load_experiment, to_dict
from fedmed.errors import FederationError, ModelError, RegistryError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="FedMed for the consortium: run federations, keep and serve their models.",
)
data_app = typer.Typer(no_args_is_help=True, help="Public data sets and site manifests.")
base_app = typer.Typer(no_args_is_help=True, help="Base models.")
registry_app = typer.Typer(no_args_is_help=True, help="Versions of the merged model in MLflow.")
app.add_typer(data_app, name="data")
app.add_typer(base_app, name="base")
app.add_typer(registry_app, name="registry")
app.add_typer(privacy_app, name="privacy")
app.add_typer(provision_app, name="provision")
app.command()(superlink)
data_app.command("check")(check_cli.check)
app.command()(agent)
app.command()(evaluate)

RunsDir = Annotated[Path, typer.Option("--runs-dir", help="where run folders and the sqlite MLflow store live")]
RegistryUri = Annotated[str, typer.Option("--uri", help="MLflow tracking URI; default: sqlite under the runs folder")]
RootCertificates = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="the CA of that SuperLink, over TLS: DIR/ca.pem of the consortium",
        show_default=False,
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value over the experiment file", show_default=False)]


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="name under configs/experiment, or a YAML file")],
    overrides: Overrides = None,
    superlink: Annotated[
        str, typer.Option(help="control address of a running SuperLink; default: start all here")
    ] = "",
    root_certificates: RootCertificates = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Run an experiment's federation, register the merged model, serve it, ask it a question, write the report."""
    config = load_federation(experiment, overrides or [])
    from aggregator.runs.run import run_experiment

    run_experiment(config, runs_dir.resolve(), Console(), superlink=superlink, root_certificates=root_certificates)


@app.command()
def resume(
    run_folder: Annotated[Path, typer.Argument(help="runs/NAME")],
    superlink: Annotated[
        str, typer.Option(help="control address of a running SuperLink; default: start all here")
    ] = "",
    root_certificates: RootCertificates = None,
) -> None:
    """Go on with a run after its last committed round, then build, publish, serve and report, as `run` does."""
    from aggregator.runs.folder import read_run

    read_run(run_folder.resolve())  # a wrong folder is told before anything large is imported
    from aggregator.runs.run import resume_run

    resume_run(run_folder.resolve(), Console(), superlink=superlink, root_certificates=root_certificates)


@app.command()
def watch(run_folder: Annotated[Path, typer.Argument(help="runs/NAME")]) -> None:
    """Show a run that somebody else has started, until it ends; changes nothing."""
    from aggregator.watching.watch import watch_run

    if watch_run(run_folder.resolve(), Console()) == "failed":
        raise typer.Exit(FederationError.exit_code)


@app.command()
def config(experiment: str, overrides: Overrides = None) -> None:
    """Print an experiment's resolved configuration and its hash."""
    from omegaconf import OmegaConf

    resolved = load_federation(experiment, overrides or [])
    typer.echo(f"# sha256 {resolved.sha256}")
    typer.echo(OmegaConf.to_yaml(OmegaConf.create(to_dict(resolved))), nl=False)


@app.command()
def serve(
    reference: Annotated[str, typer.Argument(help="NAME@ALIAS or NAME:VERSION")],
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    device: str = "auto",
    uri: RegistryUri = "",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Serve a registered version through an OpenAI-compatible API."""
    from aggregator.registry import open_registry, parse_reference

    parse_reference(reference)  # a mistake is told before anything large is imported
    from aggregator.serving import serve as serve_model

    serve_model(reference, open_registry(uri, runs_dir.resolve()), host=host, port=port, device=device)


@data_app.command("list")
def data_list() -> None:
    """The importers, and what each looks for."""
    from fedmed.data.importers import IMPORTERS

    widths = [max(map(len, column)) for column in (IMPORTERS, [entry.filename for entry in IMPORTERS.values()])]
    for name, entry in sorted(IMPORTERS.items()):
        typer.echo(f"{name:{widths[0]}}  {entry.filename:{widths[1]}}  {entry.description}")


@data_app.command("fetch")
def data_fetch(
    name: str,
    destination: Annotated[Path, typer.Option("--to", help="folder; set FEDMED_DATA_DIR to it")] = Path("data"),
) -> None:
    """Download a public data set and verify its hash."""
    from fedmed.data.fetch import fetch

    path = fetch(name, destination)
    typer.echo(f"{path} is complete and its hash is right; now: export FEDMED_DATA_DIR={path.parent.resolve()}")


@data_app.command("split")
def data_split(experiment: str, destination: Path, overrides: Overrides = None) -> None:
    """Write an experiment's site manifests and its public test set under DESTINATION, without running it."""
    from aggregator.runs.prepare import write_data

    prepared = write_data(load_experiment(experiment, overrides or []), destination)
    for site, manifest in prepared.sites.items():
        typer.echo(f"{site}: {manifest.num_patients} patients, {len(manifest.examples)} examples in {manifest.folder}")
    typer.echo(f"public test set: {len(prepared.public.examples)} examples in {prepared.public.folder}")


@base_app.command("build")
def base_build(
    out: Annotated[Path, typer.Argument(help="folder to write the checkpoint to")],
    seed: int = 0,
) -> None:
    """Pre-train fedmed-tiny on public phantoms (at most 15 minutes on 2 cores)."""
    from fedmed.models.pretrain import build_base

    build_base(out, seed=seed)


@base_app.command("mapper")
def base_mapper(
    vision: Annotated[str, typer.Argument(help="CLIP or SigLIP vision tower, or a model that has one; fedmed-tiny")],
    decoder: Annotated[str, typer.Argument(help="causal language model, or a model that has one; fedmed-tiny")],
    out: Annotated[Path, typer.Argument(help="folder to write the checkpoint to")],
    prefix: Annotated[int, typer.Option(min=1, help="tokens an image becomes")] = 8,
    hidden: Annotated[
        list[int] | None,
        typer.Option(min=1, help="width of a hidden layer of the mapper, again for more; default: the published two"),
    ] = None,
    seed: int = 0,
) -> None:
    """Make a CLIP-to-prefix base of two models on disk: one image feature, a new MLP, tokens for the decoder."""
    from fedmed.models.checkpoint import checkpoint_sha256
    from fedmed.models.mapper_build import build_mapper

    count = build_mapper(vision, decoder, out, prefix_length=prefix, sizes=hidden or (), seed=seed)
    typer.echo(f"{out}: a mapper of {count} untrained parameters; sha256 {checkpoint_sha256(out)}")
    typer.echo("train it first: lora.modules_to_save=[multi_modal_projector]")


@base_app.command("turns")
def base_turns(
    out: Annotated[Path, typer.Argument(help="folder to write the checkpoint to")],
    seed: int = 0,
) -> None:
    """Teach fedmed-tiny to write tool turns when it is told which tool to use (minutes): the base of mmedagent_tiny."""
    from fedmed.models.pretrain_turns import build_turns_base

    build = build_turns_base(out, seed)
    typer.echo(f"{out}: {build['metrics']}; sha256 {build['sha256']}")


@base_app.command("hash")
def base_hash(name: str) -> None:
    """Print the hash of a base model, as a site's policy lists it."""
    from fedmed.models.checkpoint import checkpoint_path, checkpoint_sha256

    path = checkpoint_path(name)
    if path is None:
        raise ModelError(f"base model {name!r} is not on this disk", "give a local folder, or download it first")
    typer.echo(checkpoint_sha256(path))


@registry_app.command("list")
def registry_list(name: str = "fedmed", uri: RegistryUri = "", runs_dir: RunsDir = Path("runs")) -> None:
    """Versions, aliases and their scores."""
    from aggregator.registry import open_registry

    versions = open_registry(uri, runs_dir.resolve()).versions(name)
    for version in versions:
        typer.echo(version.line())
    if not versions:
        typer.echo(f"no version of {name!r} is registered there", err=True)


@registry_app.command("show")
def registry_show(reference: str, uri: RegistryUri = "", runs_dir: RunsDir = Path("runs")) -> None:
    """A version's lineage, privacy and metrics."""
    from aggregator.registry import open_registry

    typer.echo(open_registry(uri, runs_dir.resolve()).get(reference).details())


@registry_app.command("promote")
def registry_promote(
    reference: str,
    reason: Annotated[str, typer.Option(help="kept with the version")],
    alias: str = "champion",
    uri: RegistryUri = "",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Give a version an alias; the one that had it is remembered."""
    from aggregator.registry import open_registry, promote

    if not reason.strip():
        raise RegistryError("--reason is empty, expected why the version is promoted", "it stays with the version")
    typer.echo(promote(open_registry(uri, runs_dir.resolve()), reference, alias, reason).line())


@registry_app.command("rollback")
def registry_rollback(
    name: str = "fedmed",
    reason: Annotated[str, typer.Option(help="kept with the version")] = "rolled back by hand",
    alias: str = "champion",
    uri: RegistryUri = "",
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Give the alias back to the version that had it before."""
    from aggregator.registry import open_registry, rollback

    typer.echo(rollback(open_registry(uri, runs_dir.resolve()), name, alias, reason).line())


@registry_app.command("replay")
def registry_replay(
    run_folder: Annotated[Path, typer.Argument(help="runs/NAME")],
    uri: Annotated[str, typer.Option(help="MLflow tracking URI; default: the one of the run", show_default=False)] = "",
) -> None:
    """Send the registry what it has not got of a run while it was down; doing it twice adds nothing."""
    from aggregator.registry import open_registry
    from aggregator.registry.outbox import VERSION, Outbox, deliver, sent
    from aggregator.runs.folder import read_run
    from aggregator.runs.locks import COMMAND_LOCK, hold

    folder = run_folder.resolve()
    experiment, _ = read_run(folder)
    registry = open_registry(uri or experiment.registry.uri, folder.parent)
    with hold(folder / COMMAND_LOCK, "another command"):
        outbox = Outbox(folder)
        outbox.fill()
        outbox.add(VERSION)
        waiting = outbox.pending()
        version = deliver(outbox, registry)
    typer.echo(sent(waiting), err=True)
    typer.echo(version.line())


def main() -> None:
    """Entry point of `fedmed`."""
    command_line.run(app)


if __name__ == "__main__":
    main()
