"""A federation of the suite: a SuperLink, hospitals with `fedmed-site connect` through a proxy each, and the ServerApp.

All are real processes on loopback; the hospitals' daemons are the stand-in (no torch), or what a case puts in their place.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from aggregator.superlink.flower_runs import submit
from aggregator.superlink.launcher import Superlink, start_superlink
from fedmed.config import load_experiment, to_dict
from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.models.checkpoint import ASSETS, EMBEDDED, checkpoint_sha256
from tests.faults.hospital import Hospital, make_hospital
from tests.faults.lab import Lab, json_lines, wait_for
from tests.faults.tcp_proxy import Proxy

SMALL = [
    "federation.method=ffa_lora",  # of which `Consortium.step` knows that every lora_A stays as it was
    "lora.rank=2",
    "lora.parts=[projector]",
    "privacy.noise_multiplier=1.0",
    "privacy.sample_rate=0.1",
    "training.local_steps=1",
    "evaluation.max_new_tokens=1",
    "device=cpu",
]
DEADLINE_S = 120  # nothing waits for it but where a case says so
JOIN_S = 60.0


@dataclass
class Consortium:
    """`run`: the run's folder. `proxies`: between each hospital's connector and the SuperLink."""

    lab: Lab
    run: Path
    hospitals: dict[str, Hospital]
    superlink: Superlink | None = None
    proxies: dict[str, Proxy] = field(default_factory=dict)

    def begin(self) -> Consortium:
        """Starts SuperLink and connectors and submits the run; the daemons are the case's to start."""
        flower = self.run / "flower"
        self.superlink = start_superlink(self.lab.group, flower)
        for name in self.hospitals:
            self.proxies[name] = self.lab.enter(Proxy(self.superlink.fleet))
            self.connect(name)
        submit(self.superlink.control, self.run, flower)
        return self

    def connect(self, name: str) -> None:
        """Starts a hospital's `fedmed-site connect`."""
        command = [sys.executable, "-m", "hospital_client.cli", "connect", str(self.hospitals[name].root)]
        self.lab.start(f"connect-{name}", [*command, "--superlink", self.proxies[name].address, "--insecure"])

    def events(self, kind: str = "", **fields: Any) -> list[Mapping[str, Any]]:
        """Those of events.jsonl that have these fields."""
        wanted = {**({"kind": kind} if kind else {}), **fields}
        return [
            event
            for event in json_lines(self.run / "events.jsonl")
            if all(event.get(key) == value for key, value in wanted.items())
        ]

    def wait(self, kind: str, **fields: Any) -> Mapping[str, Any]:
        """The first such event, once it is there. Raises AssertionError when the run fails before."""

        def look() -> list[Mapping[str, Any]]:
            found = self.events(kind, **fields)
            if not found and (failed := self.events("failed")):
                raise AssertionError(f"the run failed: {failed[0]['message']}")
            return found

        event: Mapping[str, Any] = wait_for(look, f"event {kind} {fields}", timeout_s=400)[0]
        return event

    def record(self, number: int) -> dict[str, Any]:
        """What round.json says."""
        made: dict[str, Any] = json.loads((self.run / "rounds" / f"{number:03d}" / "round.json").read_text())
        return made

    def adapter(self, number: int) -> dict[str, np.ndarray]:
        """The adapter after a round, without the product's reader."""
        return load_file(self.run / "rounds" / f"{number:03d}" / "adapter.safetensors")

    def step(self, number: int) -> tuple[float, float]:
        """How far the trained numbers of the adapter moved in a round, the least and the most; the frozen ones stay."""
        before, after = self.adapter(number - 1), self.adapter(number)
        frozen = [key for key in before if "lora_A" in key]
        assert frozen and all(np.array_equal(before[key], after[key]) for key in frozen), "a frozen tensor has moved"
        moved = np.concatenate([(after[key] - before[key]).ravel() for key in before if key not in frozen])
        return float(moved.min()), float(moved.max())


def make_consortium(lab: Lab, names: list[str], *overrides: str, held_out: int = 0, **policy: str) -> Consortium:
    """Hospitals that allow the run, with so many held-out patients each, and the run's folder with two public examples."""
    policy = {
        "base_models": f"[{checkpoint_sha256(ASSETS / EMBEDDED)}]",
        "epsilon_budget": "100.0",
        "max_sample_rate": "1.0",
    } | policy
    hospitals = {name: make_hospital(lab, name, held_out=held_out, **policy) for name in names}
    experiment = load_experiment(
        "demo", [f"partition.sites=[{','.join(names)}]", f"federation.deadline_s={DEADLINE_S}", *SMALL, *overrides]
    )
    run = lab.root / "run"
    run.mkdir()
    (run / "experiment.json").write_text(json.dumps(to_dict(experiment)))
    public = phantom_examples(1, 0, domain="public", split="test")
    write_manifest(run / "public", islice(public, 2))  # every round is scored on it, which takes longer than the round
    return Consortium(lab, run, hospitals)
