"""An experiment's configuration: YAML in, one frozen typed tree out.

    configs/base.yaml < configs/experiment/NAME.yaml < key=value of the command line
        -> OmegaConf merge -> parse (every problem at once, each with its key path) -> Experiment

    >>> experiment = load_experiment("demo", ["training.rounds=2"])
    >>> experiment.training.rounds
    2

Defaults live in configs/base.yaml alone; fedmed/experiment.py has types and ranges, fedmed/config_checks.py the rules that span
several keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedmed.config_checks import cross_check
from fedmed.errors import ConfigError
from fedmed.experiment import Data, Experiment, Federation, Privacy, ServerOptimizer, Training, to_dict
from fedmed.typed import parse, read_yaml, readable, to_plain

__all__ = [
    "CONFIG_DIR",
    "Data",
    "Experiment",
    "Federation",
    "Privacy",
    "ServerOptimizer",
    "Training",
    "load_experiment",
    "parse_experiment",
    "to_dict",
]
# In a checkout the files are looked up beside the package; in an installation they are shipped inside it.
CONFIG_DIR = next(
    (
        path
        for path in (Path(__file__).parents[1] / "configs", Path(__file__).parent / "configs")
        if (path / "base.yaml").exists()
    ),
    Path("configs"),
)


def load_experiment(name_or_path: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment `configs/experiment/NAME.yaml`, or a file, over base.yaml, under `key=value` overrides.

    Raises:
        ConfigError: unknown experiment, broken YAML, or every wrong key, type and range at once.
    """
    path = _find_experiment(name_or_path)
    layers = [read_yaml(CONFIG_DIR / "base.yaml"), read_yaml(path), _read_overrides(overrides)]
    return parse_experiment(_fill_stages(_merge(layers, str(path))))


def parse_experiment(data: Any) -> Experiment:
    """An Experiment from plain data (as `to_dict` gives it), with the rules that span several keys."""
    problems: list[str] = []
    experiment = parse(Experiment, data, "", problems)
    if not problems:
        problems = cross_check(experiment)
    if problems:
        raise ConfigError(problems, "configs/base.yaml lists every key with its unit and effect")
    return experiment


def _find_experiment(name_or_path: str) -> Path:
    for path in (Path(name_or_path), CONFIG_DIR / "experiment" / f"{name_or_path}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml")))
    raise ConfigError([f"experiment {name_or_path!r} is neither a file nor one of: {known}"])


def _read_overrides(overrides: Sequence[str]) -> DictConfig:
    wrong = [f"override {item!r} is not of the form key=value" for item in overrides if "=" not in item]
    if wrong:
        raise ConfigError(wrong, "for example: fedmed run demo training.rounds=2")
    with readable("the overrides"):
        return OmegaConf.from_dotlist(list(overrides))


def _merge(layers: list[DictConfig], where: str) -> Any:
    merged, *others = layers
    with readable(where):
        for layer in others:
            if clashes := list(_clashes(OmegaConf.to_container(merged), OmegaConf.to_container(layer))):
                raise ConfigError(clashes, "configs/base.yaml lists every key with its unit and effect")
            merged = OmegaConf.merge(merged, layer)  # type: ignore[assignment]
        return to_plain(merged, where)


def _clashes(known: Any, given: Any, path: str = "") -> Iterator[str]:
    """Lists where there are groups of keys, and the other way round: OmegaConf merges neither, and does not say where it is."""
    if isinstance(known, dict) and isinstance(given, dict):
        for key in known.keys() & given.keys():
            yield from _clashes(known[key], given[key], f"{path}.{key}" if path else f"{key}")
    elif {type(known), type(given)} == {dict, list}:
        yield f"{path}={given!r}: expected {'a group of keys' if isinstance(known, dict) else 'a list'}"


def _fill_stages(data: Any) -> Any:
    """Each stage over the experiment's own `training` and `curriculum`: it says only what is different."""
    stages = data.get("stages") if isinstance(data, dict) else None
    if not isinstance(stages, dict):
        return data
    filled = {}
    for name, stage in stages.items():
        own = {} if stage is None else stage  # `align:` alone is a stage that changes nothing
        if isinstance(own, dict):
            own = own | {
                key: data[key] | (own[key] if isinstance(own.get(key), dict) else {})
                for key in ("training", "curriculum")
                if isinstance(data.get(key), dict) and isinstance(own.get(key, {}), dict)
            }
        filled[name] = own
    return data | {"stages": filled}
