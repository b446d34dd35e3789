"""The table of methods, and what of an experiment's federation excludes each other."""

import dataclasses
import subprocess
import sys
import time

import pytest

from aggregator.methods import METHODS, check_federation, get_method, load_federation
from fedmed.config import load_experiment
from fedmed.errors import ConfigError, FederationError
from tests.helpers_adapters import experiment_of


def problems(*overrides: str) -> list[str]:
    return check_federation(load_experiment("demo", overrides))


def test_table_lists_what_each_method_sends():
    assert get_method("fedavg").returned(1) == get_method("fedavg").down == ("lora_A", "lora_B", "saved")
    assert get_method("ffa_lora").returned(7) == get_method("ffa_lora").down == ("lora_B", "saved")
    assert [get_method("rolora").returned(number)[0] for number in (1, 2, 3, 4)] == ["lora_B", "lora_A"] * 2
    assert get_method("fed_sb").returned(1) == ("lora_R", "saved")
    assert get_method("fedsvd").down == ("lora_A", "lora_B", "saved")
    assert get_method("fedsa_lora").trained(1) == ("lora_A", "lora_B", "saved")
    assert get_method("fedsa_lora").returned(1) == get_method("fedsa_lora").down == ("lora_A", "saved")
    assert all(name == method.name and method.paper for name, method in METHODS.items())


def test_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(FederationError, match=r"'fedavg2'.*fedavg, "):
        get_method("fedavg2")


def test_entries_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_method("fedavg").exact = True  # type: ignore[misc]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_asked_for(name):
    assert check_federation(experiment_of(name)) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["federation.method=fedavg2"], "federation.method='fedavg2'"),
        (
            ["federation.method=fedavg", "federation.site_ranks.north=4"],
            "federation.site_ranks: fedavg averages tensors",
        ),
        (["lora.core=true"], "lora.core=true: expected false"),
        (
            ["lora.targets=[]", "lora.virtual_tokens=4", "federation.method=rolora"],
            "lora.targets=[]: expected some with rolora, which acts on A and B; without LoRA take fedavg or ffa_lora",
        ),
        (["federation.method=fed_sb"], "lora.core=false: expected true"),
        (["federation.method=fedsa_lora"], "registry.promote=true: expected false"),
        (["federation.method=fedsvd"], "training.keep_state=true: expected false"),
        (["federation.server.learning_rate=0.5"], "federation.server.learning_rate=0.5: expected 1"),
        (
            ["federation.method=fedsvd", "training.keep_state=false", "federation.server.name=fedadam"],
            "federation.server.name=fedadam: expected none",
        ),
        (
            [
                "federation.robust.rule=median",
                "federation.weighting=equal",
                "federation.quorum=3",
                "federation.method=fedavg",
            ],
            "federation.robust.rule=median: expected multi_krum or none",
        ),
        (
            ["federation.method=ffa_lora", "federation.robust.rule=trimmed_mean", "federation.quorum=3"],
            "federation.weighting=patients: expected equal",
        ),
        (["federation.robust.rule=multi_krum", "federation.quorum=3"], "federation.quorum=3: expected at least 5"),
    ],
)
def test_each_exclusion_is_one_line_with_its_reason(overrides, said):
    [problem] = problems(*overrides)
    assert problem.startswith(said)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as raised:
        load_federation(
            "demo", ["lora.core=true", "federation.server.learning_rate=2", "federation.site_ranks.north=2"]
        )
    assert len(raised.value.problems) == 3


@pytest.mark.parametrize("command", ["run", "config"])
def test_a_wrong_federation_is_refused_before_torch_is_there(command):
    code = (
        "import sys, aggregator.cli as cli\n"
        "try:\n    cli.main()\n"
        "finally:\n    assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    arguments = [
        sys.executable,
        "-c",
        code,
        command,
        "demo",
        "federation.method=fed_sb",
        "federation.server.learning_rate=2",
    ]
    began = time.monotonic()
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - began < 20  # a second on an idle machine
    assert ended.returncode == 2
    assert "2 problems" in ended.stderr and "lora.core=false" in ended.stderr and "Traceback" not in ended.stderr
