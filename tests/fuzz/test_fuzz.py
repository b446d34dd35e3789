"""Hundreds of damaged inputs a parser, or thousands, in `make test`; more in `make fuzz`. And the fuzzer finds what it should."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from fedmed.data.importers import IMPORTERS
from fedmed.errors import ConfigError, FedMedError, WireError
from tests.fuzz import run
from tests.fuzz.importer_sources import LAYOUTS
from tests.fuzz.mutate import mutate_bytes, mutate_json
from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS, Target

# A site writes each decision down, YAML is read by slow code, and importers read all files of a source for one that is damaged.
INPUTS = dict.fromkeys(TARGETS, 2000) | {"site": 500, "config": 1000, "yaml": 600, "dicom": 500}
INPUTS |= dict.fromkeys(LAYOUTS, 500) | {"npz": 150, "parquet": 250}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_ends_in_a_named_error(name: str) -> None:
    tally = fuzz(name, INPUTS[name])
    assert tally.findings == []
    assert tally.inputs == INPUTS[name] == tally.accepted + sum(tally.refused.values())
    assert tally.inputs > tally.accepted > 0 or name in ("yaml", "site")  # hardly ever, and always with an answer


def test_every_importer_is_under_fuzz() -> None:
    """The sets of MedMNIST are one importer: two labels, several, and many an image."""
    fed = {layout.entry for layouts in LAYOUTS.values() for layout in layouts}
    left_out = IMPORTERS.keys() - fed
    assert {name for name in left_out if not name.endswith("mnist")} == {"pmc_vqa_blank", "pmc_vqa_2"}  # of one class


def test_the_same_seed_gives_the_same_inputs_and_another_seed_others() -> None:
    value = {"round": 1, "sites": ["north", "valley"], "privacy": {"noise": 1.5}}

    def draw(seed: int) -> list[object]:
        rng = Random(seed)
        return [mutate_bytes(rng, b"some valid bytes 123", [b"others"]) for _ in range(50)] + [
            json.dumps(mutate_json(rng, value)) for _ in range(50)
        ]

    assert draw(1) == draw(1) != draw(2)
    assert value == {"round": 1, "sites": ["north", "valley"], "privacy": {"noise": 1.5}}
    assert len(set(map(str, draw(1)))) > 80


@pytest.mark.parametrize(
    ("raised", "finding"),
    [
        (WireError("damaged"), None),
        (ConfigError(["wrong"]), None),
        (FedMedError("something"), "an error without a name of its own"),
        (KeyError("round"), "KeyError: 'round'"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_what_is_no_named_error_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, finding: str | None
) -> None:
    def target(folder: Path) -> Target:
        def parse(made: int) -> None:
            if made == 3:
                raise raised

        return Target("fake", lambda rng: made.pop(0), parse)

    made = list(range(5))
    monkeypatch.setattr(run, "TARGETS", {"fake": target})
    tally = fuzz("fake", 5)
    assert tally.findings == ([] if finding is None else [(3, finding)])
    assert tally.accepted == 4


def test_a_parser_that_takes_much_memory_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where it gives all of it back, or refuses the input in the end."""

    def parse(made: int) -> None:
        taken = bytearray(made)
        taken[:: 1 << 12] = bytes(len(taken[:: 1 << 12]))  # touch each page: what is only asked for is not taken
        if made % 2:
            raise WireError("refused")

    sizes = [1 << 20, 300 << 20, (300 << 20) + 1, 1 << 20]
    monkeypatch.setattr(run, "TARGETS", {"fake": lambda folder: Target("fake", lambda rng: sizes.pop(0), parse)})
    tally = fuzz("fake", 4)
    assert [(number, text.split()[0]) for number, text in tally.findings] == [(1, "took"), (2, "took")]
    assert tally.largest_bytes >= 299 << 20


def test_a_slow_parser_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "TARGETS", {"fake": lambda folder: Target("fake", lambda rng: 0, lambda made: None)})
    monkeypatch.setattr(run, "SLOW_S", -1.0)
    tally = fuzz("fake", 100)
    assert [text.split()[0] for _, text in tally.findings] == ["took"] * run.MOST_FINDINGS
    assert tally.inputs == run.MOST_FINDINGS
