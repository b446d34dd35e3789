"""`fedmed provision` and `fedmed superlink`: who may join the consortium, and where.

fedmed provision init consortium --host aggregator.example.org      the CA, the SuperLink's certificate
fedmed provision site consortium north --public-key north.pub       admits a site by the key that it made itself
fedmed provision site consortium north                              the same, the key made here and handed over in the kit
fedmed provision status consortium                                  who may join, and what ends when
fedmed provision renew consortium                                   a new certificate; sites notice nothing
fedmed provision revoke consortium north --reason "left the study"
fedmed superlink consortium --host 0.0.0.0                          runs the SuperLink for them
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from aggregator.joining.provision import Consortium

provision_app = typer.Typer(no_args_is_help=True, help="A consortium's CA, certificates, and the sites that may join.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the consortium's folder", show_default=False)]
Site = Annotated[str, typer.Argument(metavar="NAME", help="the site's name", show_default=False)]
Hosts = Annotated[
    list[str] | None, typer.Option("--host", help="name or address by which sites reach the SuperLink; repeatable")
]


@provision_app.command()
def init(
    directory: Folder,
    host: Hosts = None,
    fleet_port: Annotated[int, typer.Option(help="where sites connect")] = 9092,
    days: Annotated[int, typer.Option(help="how long a server certificate is valid")] = 365,
) -> None:
    """Make a consortium: its CA, and the SuperLink's certificate for every --host; the first is in the sites' kits."""
    from aggregator.joining.provision import init as make

    consortium = make(directory, host or [], fleet_port=fleet_port, days=days)
    typer.echo(f"made a consortium in {directory}; sites will connect to {consortium.superlink}")
    typer.echo(
        f"  next: `fedmed provision site {directory} NAME` for each site, then `fedmed superlink {directory} --host 0.0.0.0`"
    )
    typer.echo(f"  {directory / 'ca.key'} is needed by `renew` alone: keep it on another disk in between, and a backup")


@provision_app.command()
def site(
    directory: Folder,
    name: Site,
    public_key: Annotated[
        Path | None,
        typer.Option(
            help="made at the hospital by `fedmed-site keygen`; default: make a pair here", show_default=False
        ),
    ] = None,
) -> None:
    """Admit a site and write its kit; also takes a site's next key, beside which the old one works until it is seen."""
    from aggregator.joining.provision import add_site, load

    tar = add_site(load(directory), name, public_key)
    typer.echo(f"site {name} may join with this kit: {tar}")
    if public_key is None:
        typer.echo("  it holds the site's private key: hand it over in person or encrypted, then delete it here")
    typer.echo("  there: `fedmed-site join KIT DIR`")


@provision_app.command()
def renew(
    directory: Folder,
    host: Hosts = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="with a new private key too")] = False,
) -> None:
    """Give the SuperLink a new certificate under the same CA; a running one shows it from the next connection on."""
    from aggregator.joining.provision import load
    from aggregator.joining.provision import renew as make

    certificate = make(load(directory), hosts=host or (), new_key=new_key)
    typer.echo(f"the SuperLink's certificate is valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")


@provision_app.command()
def revoke(
    directory: Folder, name: Site, reason: Annotated[str, typer.Option(help="kept in the register")] = ""
) -> None:
    """Take every key of a site out of use for good; a running SuperLink refuses it within seconds."""
    from aggregator.joining.provision import load
    from aggregator.joining.provision import revoke as end

    for entry in end(load(directory), name, reason):
        typer.echo(f"revoked {entry.fingerprint} of site {name}")
    typer.echo(f"  to have it back: `fedmed provision site {directory} {name} --public-key` with a new key")


@provision_app.command()
def status(
    directory: Folder, as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of text")] = False
) -> None:
    """Who may join, who could once, and what ends when."""
    from aggregator.joining.provision import load

    report = _report(load(directory))
    if as_json:
        typer.echo(json.dumps(report))
        return
    typer.echo(f"sites connect to {report['superlink']}; the certificate names {', '.join(report['hosts'])}")
    typer.echo(f"certificate until {report['certificate_ends']}, CA until {report['ca_ends']}")
    for key in report["keys"]:
        ended = f", {key['ended'][:10]} {key['reason']}".rstrip() if key["ended"] else ""
        typer.echo(f"{key['site']:20} {key['state']:9} {key['fingerprint']}  since {key['admitted'][:10]}{ended}")
    for line in report["warnings"]:
        typer.echo(f"warning: {line}", err=True)


def superlink(
    directory: Folder,
    host: Annotated[
        str, typer.Option(help="where sites may connect from: 127.0.0.1, 0.0.0.0, or one address")
    ] = "127.0.0.1",
    fleet_port: Annotated[int, typer.Option(help="for sites; default: the consortium's", show_default=False)] = 0,
    control_port: Annotated[int, typer.Option(help="for `fedmed run`, on loopback alone")] = 9093,
    database: Annotated[
        Path | None, typer.Option(help="Flower's state as a file; default: in memory", show_default=False)
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="plain text, and anybody may join: for trials")] = False,
) -> None:
    """Run the consortium's SuperLink: TLS, and only sites whose keys are in the register."""
    from aggregator.superlink.serve import Listen, run_superlink

    run_superlink(directory, Listen(host, fleet_port, control_port, database, insecure), typer.echo)


def _report(consortium: Consortium) -> dict[str, Any]:
    from aggregator.joining.provision import certificate_warnings, load_certificate

    certificate, ca = load_certificate(consortium.certificate), load_certificate(consortium.ca)
    now = datetime.now(UTC)
    return {
        "superlink": consortium.superlink,
        "hosts": list(consortium.settings.hosts),
        "certificate_ends": certificate.not_valid_after_utc.isoformat(timespec="minutes"),
        "ca_ends": ca.not_valid_after_utc.isoformat(timespec="minutes"),
        "keys": [
            {name: value for name, value in asdict(entry).items() if name != "key"}
            for entry in consortium.register.entries()
        ],
        "warnings": certificate_warnings(consortium, now),
    }
