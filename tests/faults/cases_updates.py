"""A hospital that answers with what it should not, behind a real node, beside two honest ones. One run for all of these
cases: each misdeed has a round of its own, and the first case that is run pays for it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from tests.faults.case import Facts, case
from tests.faults.consortium import make_consortium
from tests.faults.hostile import HONEST_STEP, MISDEEDS
from tests.faults.lab import Lab, wait_for

# `again` sends round 1's answer in round 2; then come all the others, honest ones first so that a norm is known.
SCRIPT = ["honest", "again", *MISDEEDS]
SLACK = 1e-5


@dataclass(frozen=True)
class Seen:
    """What became of one misdeed's round: why it was left out ("" for taken), and how far the adapter moved."""

    reason: str
    replies: list[str]
    least: float
    most: float
    flagged: bool

    @property
    def as_without_it(self) -> bool:
        """Whether the two honest sites were aggregated as if there were no third."""
        both = [self.least, self.most]
        return self.replies == ["harbour", "north"] and all(abs(step - HONEST_STEP) < SLACK for step in both)


_SEEN: dict[str, Seen] = {}


def seen(lab: Lab, misdeed: str) -> Seen:
    if not _SEEN:
        _SEEN.update(run_all(lab))
    return _SEEN[misdeed]


def run_all(lab: Lab) -> dict[str, Seen]:
    """A run of as many rounds as there are misdeeds."""
    made = make_consortium(lab, ["north", "harbour", "valley"], f"training.rounds={len(SCRIPT)}", "federation.quorum=2")
    for name, hospital in made.hospitals.items():
        module = ["fedmed.wire.fake_site", name, str(hospital.socket), "--shift", str(HONEST_STEP)]
        if name == "valley":
            module = ["tests.faults.hostile", name, str(hospital.socket), ",".join(SCRIPT)]
        process = lab.start(name, [sys.executable, "-m", *module])
        wait_for(lambda log=process.log: " ready " in log.read_text(), f"{name} to be ready")
    made.begin().wait("finished")
    found = {}
    for number, misdeed in enumerate(SCRIPT, start=1):
        record: dict[str, Any] = made.record(number)
        flagged = [
            event for kind in ("left_out", "bounded") for event in made.events(kind, round=number, site="valley")
        ]
        replies = sorted(reply["site"] for reply in record["replies"])
        found[misdeed] = Seen(record["left_out"].get("valley", ""), replies, *made.step(number), bool(flagged))
    return found


LEFT_OUT = (
    "the site is left out and named, with the reason: {reason}; the others are aggregated as without it: {others}"
)


def judged(lab: Lab, misdeeds: dict[str, str]) -> Facts:
    """Which of the reasons are as they should be, and whether all rounds went on without the site."""
    found = {misdeed: seen(lab, misdeed) for misdeed in misdeeds}
    said = {
        misdeed: part if part in found[misdeed].reason else found[misdeed].reason or "taken"
        for misdeed, part in misdeeds.items()
    }
    others = all(item.as_without_it and item.flagged for item in found.values())
    return {"reason": " / ".join(said.values()), "others": others}


def rejected(number: int, fault: str, misdeeds: dict[str, str], *, part: str = "") -> None:
    """A case in which every misdeed is left out for a reason that holds these words."""
    case(number, fault, LEFT_OUT, part=part, reason=" / ".join(misdeeds.values()), others=True)(
        lambda lab: judged(lab, misdeeds)
    )


rejected(
    10,
    "an update with a NaN, and one with an infinity",
    {"nan": "holds values that are not finite", "infinity": "holds values that are not finite"},
)
rejected(
    12,
    "an update that lacks a tensor, has one too many, of another shape, rank or type",
    {
        "missing key": "1 tensors are missing",
        "unknown key": "1 tensors are not asked for",
        "shape": "has shape",
        "rank": "has shape",
        "dtype": "has dtype F64, expected one of",
    },
)
rejected(
    13,
    "a patient count of 0 where one was told, below 0, and of a thousand million",
    {
        "no patients": "num_patients=0",
        "negative patients": "num_patients=-5: expected 0 to 10000000",
        "absurd patients": "num_patients=1000000000: expected 0 to 10000000",
    },
)
rejected(
    13,
    "a site claims other steps than it was asked for, a fingerprint that is none, a negative epsilon",
    {
        "fewer steps": "took 0 steps, expected",
        "long fingerprint": "expected 64 hexadecimal digits",
        "negative epsilon": "epsilon_total=-0.5: expected 0 or more",
    },
    part="claims",
)
rejected(14, "a site answers with an adapter of 64 MB", {"too large": "bytes, expected at most"}, part="update")
rejected(15, "a site's answer arrives damaged", {"damaged": "is damaged"}, part="update")
rejected(
    5,
    "a site answers with the result of the round before, of another round, or in another site's name",
    {"again": "expected", "other round": "expected", "other name": "expected"},
    part="replay",
)
rejected(28, "a site answers with a pickle", {"pickle": "is not safetensors"}, part="update")
rejected(
    32,
    "a site speaks an older protocol version",
    {"other protocol": "the peer speaks wire protocol"},
    part="update",
)


@case(
    11,
    "an update ten thousand times as long, and one a hundred times as long in the other direction",
    "flagged: {flagged}; the adapter moves no further than {most} honest steps: {bounded}",
    flagged=True,
    most=4,
    bounded=True,
)
def outliers(lab: Lab) -> Facts:
    found = [seen(lab, misdeed) for misdeed in ("outlier", "sign flip")]
    most = max(abs(step) for item in found for step in (item.least, item.most))
    return {"flagged": all(item.flagged for item in found), "most": 4, "bounded": most < 4 * HONEST_STEP + SLACK}
