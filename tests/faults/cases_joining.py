"""Faults of who may join: certificates out of their time or for another name, keys unknown or revoked, wrong clocks."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from aggregator.joining import provision
from aggregator.runs.processes import Managed
from fedmed.kit import read_kit, write_kit
from fedmed.node_keys import fingerprint, read_public
from tests.faults.case import Facts, case
from tests.faults.hospital import Hospital, error_lines, make_hospital
from tests.faults.joined import HOST, Clock, Joined, audited, connection
from tests.faults.lab import Done, Lab, wait_for

REFUSED = 11  # exit status of AdmissionError
ELSEWHERE = "127.0.0.3"


def part_of(done: Done, words: str) -> str:
    """`words`, where the error holds them; the error itself elsewhere."""
    text = error_lines(done)
    return words if words in text else text


@case(
    16,
    "the SuperLink's certificate has ended; has not begun; is for another name",
    "`check` ends with status {exits} and says: {says}; a site that connects with the first says so once: {told}, goes on "
    "running: {runs}, was never connected: {kept_out}, and joins by itself when the certificate is renewed: {joins}",
    part="refused",
    exits=[REFUSED] * 3,
    says="ended on / begins on / is for 127.0.0.3",
    told=1,
    runs=True,
    kept_out=True,
    joins=True,
)
def wrong_certificates(lab: Lab) -> Facts:
    made, now = Joined(lab), datetime.now(UTC)
    provision.renew(made.consortium, now=now - timedelta(days=400))
    connector = made.connect()
    made.says(connector, "ended on")
    ended = made.check()
    told = connector.log.read_text().count("not admitted")
    provision.renew(made.consortium, now=now + timedelta(days=2))
    early = made.check()
    provision.renew(made.consortium, hosts=[ELSEWHERE])
    other = made.check()
    runs, kept_out = connector.process.poll() is None, not audited(made.site, "connected")
    assert lab.fedmed("provision", "renew", str(made.root), "--host", HOST).returncode == 0
    made.says(connector, "connected as node")
    found = [(ended, "ended on"), (early, "begins on"), (other, f"is for {ELSEWHERE}")]
    return {
        "exits": [done.returncode for done, _ in found],
        "says": " / ".join(part_of(done, words) for done, words in found),
        "told": told,
        "runs": runs,
        "kept_out": kept_out,
        "joins": audited(made.site, "connected") != [],
    }


@case(
    16,
    "the SuperLink's certificate ends in 20 days",
    "`check` ends with status {exit} and warns: {check}; `provision status` warns: {status}; the site is connected, and its "
    "audit has the warning: {audited}; after `provision renew` nobody warns: {quiet}",
    part="warning",
    exit=0,
    check=True,
    status=True,
    audited=True,
    quiet=True,
)
def certificate_near_its_end(lab: Lab) -> Facts:
    made = Joined(lab)
    provision.renew(made.consortium, now=datetime.now(UTC) - timedelta(days=provision.SERVER_DAYS - 20, minutes=-5))
    check, status = made.check(), lab.fedmed("provision", "status", str(made.root))
    made.says(made.connect(), "connected as node")
    wait_for(lambda: audited(made.site, "warning"), "the warning to be audited", timeout_s=60)
    assert lab.fedmed("provision", "renew", str(made.root)).returncode == 0
    after = made.check(), lab.fedmed("provision", "status", str(made.root))
    return {
        "exit": check.returncode,
        "check": "WARN" in check.stderr and "in 20 days" in check.stderr,
        "status": "ends in 20 days" in status.stderr,
        "audited": "in 20 days" in audited(made.site, "warning")[0],
        "quiet": "WARN" not in after[0].stderr and "warning" not in after[1].stderr,
    }


def stranger(made: Joined) -> tuple[Hospital, str]:
    """A site with a kit that nobody made for it, and a key of its own that nobody admitted; the key's fingerprint."""
    site = make_hospital(made.lab, "stranger").start()
    assert made.lab.fedmed_site("keygen", str(site.root)).returncode == 0
    public = connection(site) / "node.pub"
    mark = fingerprint(read_public(public))
    real = read_kit(made.root / "kits" / "north.tar")
    kit = replace(real, site="stranger", fingerprint=mark, key=b"", public=public.read_bytes())
    tar = write_kit(made.lab.root / "forged", kit)
    assert made.lab.fedmed_site("join", str(tar), str(site.root)).returncode == 0
    return site, mark


KEPT_OUT = (
    "`check` ends with status {exit} and names the key: {named}; the connector is refused, audited {times} time, says it "
    "{said} time in ten seconds of trying, and still runs: {runs}"
)


def kept_out(made: Joined, site: Hospital, connector: Managed, mark: str) -> Facts:
    """What `KEPT_OUT` tells, ten seconds after the refusal."""
    made.says(connector, "does not admit the key")
    time.sleep(10.0)
    done, refusals = made.check(site), audited(site, "refused")
    return {
        "exit": done.returncode,
        "named": mark in error_lines(done) and all(mark in text for text in refusals),
        "times": len(refusals),
        "said": connector.log.read_text().count("not admitted"),
        "runs": connector.process.poll() is None,
    }


@case(
    17,
    "a hospital connects with a key that the consortium does not know",
    KEPT_OUT + "; the consortium knows of {nodes} node",
    part="unknown",
    exit=REFUSED,
    named=True,
    times=1,
    said=1,
    runs=True,
    nodes=1,
)
def unknown_key(lab: Lab) -> Facts:
    made = Joined(lab)
    site, mark = stranger(made)
    return {**kept_out(made, site, made.connect(site), mark), "nodes": nodes(made)}


@case(
    17,
    "the key of a connected hospital is revoked",
    KEPT_OUT
    + "; the consortium's register says {state} with the reason: {reason}; it knows of {nodes} nodes; a new key, "
    "admitted and joined, is let in: {again}",
    part="revoked",
    exit=REFUSED,
    named=True,
    times=1,
    said=1,
    runs=True,
    state="revoked",
    reason="left",
    nodes=0,
    again=True,
)
def revoked_key(lab: Lab) -> Facts:
    made = Joined(lab)
    connector = made.connect()
    made.says(connector, "connected as node")
    mark = fingerprint(read_public(connection(made.site) / "node.pub"))
    assert lab.fedmed("provision", "revoke", str(made.root), "north", "--reason", "left").returncode == 0
    found = kept_out(made, made.site, connector, mark)
    (entry,) = made.consortium.register.entries()
    left = nodes(made)
    made.join(made.site)
    made.says(made.superlink, "site north may join", times=2)
    return {
        **found,
        "state": entry.state,
        "reason": entry.reason,
        "nodes": left,
        "again": made.check().returncode == 0,
    }


def nodes(made: Joined) -> int:
    """Nodes that the SuperLink was told to let in, as it notes them for the server app."""
    return len(json.loads((made.root / "nodes.json").read_text()))


@case(
    18,
    "a hospital's clock is 60 s ahead, 400 s behind, 100 s behind",
    "`check` ends with status {exits}, having measured {measured}; a connector under the first clock says: {says}, and runs "
    "on: {runs}; the clock set right, it joins by itself: {joins}",
    exits=[REFUSED, REFUSED, 0],
    measured="60 s ahead of / 400 s behind / differ by 100 s",
    says="not admitted: this machine's clock is 60 s ahead of",
    runs=True,
    joins=True,
)
def wrong_clock(lab: Lab) -> Facts:
    made, clock = Joined(lab), Clock(lab)
    ahead, behind, little = (checked_at(made, clock, seconds) for seconds in (60, -400, -100))
    clock.set(60)
    connector = made.connect(**clock.env)
    says = "not admitted: this machine's clock is 60 s ahead of"
    made.says(connector, says)
    runs = connector.process.poll() is None
    clock.set(0)
    made.says(connector, "connected as node")
    measured = [part_of(ahead, "60 s ahead of"), part_of(behind, "400 s behind")]
    measured.append(
        "differ by 100 s" if "WARN" in little.stderr and "differ by 100 s" in little.stderr else little.stderr
    )
    return {
        "exits": [done.returncode for done in (ahead, behind, little)],
        "measured": " / ".join(measured),
        "says": says,
        "runs": runs,
        "joins": audited(made.site, "connected") != [],
    }


def checked_at(made: Joined, clock: Clock, seconds: int) -> Done:
    clock.set(seconds)
    return made.check(**clock.env)
