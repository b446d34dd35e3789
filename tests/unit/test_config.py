"""Configuration: layers, and every problem at once with its key path."""

from pathlib import Path

import pytest

from fedmed.config import CONFIG_DIR, load_experiment, parse_experiment, to_dict
from fedmed.errors import ConfigError
from fedmed.typed import read_yaml


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_experiment("demo", overrides)
    return caught.value.problems


def test_command_line_wins_over_experiment_over_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nseed: 3\ntraining: {rounds: 4}\n")
    experiment = load_experiment(str(path), ["training.rounds=2"])
    assert (experiment.name, experiment.seed, experiment.training.rounds) == ("mine", 3, 2)
    assert experiment.lora.rank == 8  # from base.yaml


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_experiment_is_valid_and_headed_by_its_command(path: Path) -> None:
    experiment = load_experiment(str(path))
    assert experiment.name == path.stem
    assert f"fedmed run configs/experiment/{path.name}" in path.read_text().split("\nname:")[0]


def test_all_problems_are_reported_at_once_with_their_paths() -> None:
    problems = problems_of(
        "training.round=2", "seed=-1", "lora.parts=[retina]", "privacy.epsilon=abc", "data.split=half"
    )
    text = "\n".join(problems)
    assert len(problems) == 5
    for expected in (
        "training.round: unknown",
        "seed=-1",
        "lora.parts='retina'",
        "privacy.epsilon='abc'",
        "data.split='half'",
    ):
        assert expected in text


@pytest.mark.parametrize(
    "override",
    [
        "privacy.delta=1",
        "privacy.sample_rate=0",
        "privacy.epsilon=.inf",
        "federation.quorum=4",
        "partition.sites=[a,a]",
        "name=../escape",
        "privacy.delta=0",
        "privacy.max_patients=-1",
    ],
)
def test_out_of_range_values_are_named(override: str) -> None:
    (problem,) = problems_of(override)
    assert problem.startswith(override.split("=")[0])


def test_a_cap_needs_the_size_of_the_largest_site_and_room_for_the_average_draw() -> None:
    assert problems_of("privacy.max_patients=30") == [
        "privacy.site_patients=0: expected the patients of the largest site with privacy.max_patients"
    ]
    (problem,) = problems_of("privacy.max_patients=30", "privacy.site_patients=301", "privacy.sample_rate=0.1")
    assert problem == "privacy.max_patients=30: expected at least sample_rate * site_patients, which is 31"
    load_experiment("demo", ["privacy.sample_rate=0.1", "privacy.max_patients=31", "privacy.site_patients=301"])


def test_an_adapter_of_nothing_is_named() -> None:
    assert problems_of("lora.targets=[]") == [
        "lora.targets=[]: expected some with neither lora.modules_to_save nor lora.virtual_tokens"
    ]
    assert problems_of("lora.virtual_kind=prefix") == [
        "lora.virtual_tokens=0: expected > 0 with lora.virtual_kind=prefix"
    ]
    (problem,) = problems_of("lora.targets=[]", "lora.virtual_tokens=4", "lora.core=true")
    assert problem == "lora.core=true: expected false with lora.targets=[], R stands between B and A"
    (problem,) = problems_of("lora.virtual_tokens=513")
    assert problem == "lora.virtual_tokens=513: expected >= 0 and <= 512"
    spec = load_experiment("demo", ["lora.targets=[]", "lora.virtual_tokens=4", "lora.virtual_kind=prefix"]).lora.spec
    assert (spec.targets, spec.virtual_tokens, spec.virtual_kind) == ((), 4, "prefix")


def test_a_password_is_no_part_of_an_experiment() -> None:
    for uri in ("http://user:hunter2@mlflow.example.org", "postgresql://hunter2@db/mlflow", "http://[hunter2@x"):
        (problem,) = problems_of(f"registry.uri={uri}")
        assert problem.startswith("registry.uri") and "MLFLOW_TRACKING_PASSWORD" in problem
        assert "hunter2" not in problem
    load_experiment("demo", ["registry.uri=https://mlflow.example.org:5000/a@b"])


def test_hash_follows_the_content_alone() -> None:
    one, same, other = load_experiment("demo"), load_experiment("demo"), load_experiment("demo", ["seed=1"])
    assert one.sha256 == same.sha256 != other.sha256
    assert parse_experiment(to_dict(one)) == one


def test_unknown_experiment_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"neither a file nor one of: demo, .*pneumonia, "):
        load_experiment("nosuch")


@pytest.mark.parametrize(
    "content",
    [
        b"name: [unclosed\n",
        b"name: \xff\n",
        b"name: " + b"[" * 3000,
        b"seed: " + b"9" * 5000,
        b"name: ${nowhere}\n",
        b"? [a]\n: b\n",
    ],
)
def test_broken_yaml_is_one_problem(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="1 problem"):
        load_experiment(str(path))


def test_a_number_beyond_every_float_is_a_problem() -> None:
    plain = to_dict(load_experiment("demo"))
    plain["privacy"]["epsilon"] = 10**400
    with pytest.raises(ConfigError, match="expected float, got int"):
        parse_experiment(plain)


@pytest.mark.parametrize("text", ['"0661e999"', "7", "- a"])
def test_a_file_that_holds_no_keys_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"policy\.yaml"):
        read_yaml(path)
