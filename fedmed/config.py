"""An experiment's configuration: YAML in, one frozen typed tree out.

    configs/base.yaml < configs/experiment/NAME.yaml < key=value of the command line
        -> OmegaConf merge -> parse (every problem at once, each with its key path) -> Experiment

    >>> experiment = load_experiment("demo", ["training.rounds=2"])
    >>> experiment.training.rounds
    2

Defaults live in configs/base.yaml alone; the classes below carry types and ranges.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from fedmed.errors import ConfigError
from fedmed.messages import LoraSpec
from fedmed.privacy.events import least_cap
from fedmed.typed import choice, number, parse, read_yaml, readable, texts, to_plain

ADDRESS_ALONE = (
    "holds a name or password, expected MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
)
# In a checkout the files are looked up beside the package; in an installation they are shipped inside it.
CONFIG_DIR = next(
    (
        path
        for path in (Path(__file__).parents[1] / "configs", Path(__file__).parent / "configs")
        if (path / "base.yaml").exists()
    ),
    Path("configs"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    source: str
    path: str
    fallback: str
    split: str = choice("official", "image")
    train_patients: int = number(1)
    test_patients: int = number(1)
    max_test_examples: int = number(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    sites: tuple[str, ...]
    scheme: str = choice("iid", "dirichlet", "field")
    field: str
    alpha: float = number(0, above=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    rank: int = number(1, 1024)
    alpha: float = number(0, above=True)
    parts: tuple[str, ...] = choice("language_model", "projector", "vision_tower")
    targets: tuple[str, ...] = texts()
    modules_to_save: tuple[str, ...] = texts()
    core: bool
    virtual_tokens: int = number(0, 512)
    virtual_kind: str = choice("prompt", "prefix")

    @property
    def spec(self) -> LoraSpec:
        """As the wire and the model take it."""
        return LoraSpec(
            self.rank,
            self.alpha,
            self.parts,
            self.targets,
            self.modules_to_save,
            self.core,
            self.virtual_tokens,
            self.virtual_kind,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    mode: str = choice("dp", "none")
    epsilon: float = number(0, above=True)
    delta: float = number(0, 1, below=True)
    sample_rate: float = number(0, 1, above=True)
    max_grad_norm: float = number(0, above=True)
    records_per_patient: int = number(1)
    noise_multiplier: float = number(0)
    clipping: str = choice("flat", "automatic", "per_layer")
    max_patients: int = number(0)
    site_patients: int = number(0)
    metrics_noise_multiplier: float = number(0)
    insecure_noise_seed: int = number(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    rounds: int = number(1)
    local_steps: int = number(1)
    optimizer: str = choice("adamw", "sgd", "adam_bc")
    learning_rate: float = number(0, above=True)
    schedule: str = choice("constant", "cosine")
    warmup_rounds: int = number(0)
    momentum: float = number(0, 1, below=True)
    weight_decay: float = number(0)
    keep_state: bool
    precision: str = choice("float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptimizer:
    name: str = choice("none", "fedavgm", "fedadam", "fedyogi")
    learning_rate: float = number(0, above=True)
    beta1: float = number(0, 1, below=True)
    beta2: float = number(0, 1, below=True)
    tau: float = number(0, above=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Robust:
    rule: str = choice("none", "median", "trimmed_mean", "multi_krum")
    faulty: int = number(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    method: str
    weighting: str = choice("patients", "equal")
    site_ranks: dict[str, int] = number(1, 1024)  # noqa: RUF009  a field, as all of these are
    proximal_mu: float = number(0)
    server: ServerOptimizer
    robust: Robust
    norm_bound: float = number(1)
    quorum: int = number(1)
    deadline_s: float = number(0, above=True)
    join_timeout_s: float = number(0, above=True)
    wire_dtype: str = choice("float32", "bfloat16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    batch_size: int = number(1)
    max_new_tokens: int = number(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    name: str
    uri: str
    promote: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    host: str
    port: int = number(0, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A whole experiment. See configs/base.yaml for every key's unit and effect."""

    name: str
    seed: int = number(0)
    device: str = choice("auto", "cpu", "cuda")
    base_model: BaseModel
    data: Data
    partition: Partition
    lora: Lora
    privacy: Privacy
    training: Training
    federation: Federation
    evaluation: Evaluation
    registry: Registry
    serving: Serving

    @property
    def sha256(self) -> str:
        """Hash of the resolved configuration; travels with every task and into the registry."""
        canonical = json.dumps(to_dict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def load_experiment(name_or_path: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment `configs/experiment/NAME.yaml`, or a file, over base.yaml, under `key=value` overrides.

    Raises:
        ConfigError: unknown experiment, broken YAML, or every wrong key, type and range at once.
    """
    path = _find_experiment(name_or_path)
    layers = [read_yaml(CONFIG_DIR / "base.yaml"), read_yaml(path), _read_overrides(overrides)]
    return parse_experiment(_merge(layers, str(path)))


def parse_experiment(data: Any) -> Experiment:
    """An Experiment from plain data (as `to_dict` gives it), with the rules that span several keys."""
    problems: list[str] = []
    experiment = parse(Experiment, data, "", problems)
    if not problems:
        problems = _cross_check(experiment)
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
    with readable(where):
        return to_plain(OmegaConf.merge(*layers), where)


def _cross_check(experiment: Experiment) -> list[str]:
    problems = []
    sites = experiment.partition.sites
    if len(set(sites)) != len(sites):
        problems.append(f"partition.sites={list(sites)!r}: expected names that differ")
    if bad := [site for site in sites if not site.replace("-", "").replace("_", "").isalnum()]:
        problems.append(f"partition.sites: {bad!r}: expected letters, digits, - and _ only")
    if not experiment.name.replace("-", "").replace("_", "").isalnum():
        problems.append(f"name={experiment.name!r}: expected letters, digits, - and _ only")
    if strangers := sorted(set(experiment.federation.site_ranks) - set(sites)):
        problems.append(f"federation.site_ranks: {strangers!r} are not among partition.sites")
    if experiment.federation.quorum > len(sites):
        problems.append(f"federation.quorum={experiment.federation.quorum}: expected at most {len(sites)}, the sites")
    training, privacy = experiment.training, experiment.privacy
    if (warm_up := training.warmup_rounds) >= training.rounds:
        problems.append(f"training.warmup_rounds={warm_up}: expected below {training.rounds}, the rounds")
    if privacy.mode == "dp" and privacy.delta == 0:
        problems.append("privacy.delta=0.0: expected > 0 with privacy.mode=dp")
    if privacy.mode == "none" and (asked := privacy.metrics_noise_multiplier):
        problems.append(f"privacy.metrics_noise_multiplier={asked:g}: expected 0 with privacy.mode=none")
    if has_secret(experiment.registry.uri):
        problems.append(f"registry.uri: {ADDRESS_ALONE}")
    return problems + _check_adapter(experiment.lora) + _check_cap(privacy)


def has_secret(uri: str) -> bool:
    """Whether an address holds a name or password: it would stand in files, in MLflow and in the list of processes."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "@" in uri
    return parts.username is not None or parts.password is not None


def _check_adapter(lora: Lora) -> list[str]:
    problems = []
    if not (lora.targets or lora.modules_to_save or lora.virtual_tokens):
        problems.append("lora.targets=[]: expected some with neither lora.modules_to_save nor lora.virtual_tokens")
    if lora.core and not lora.targets:
        problems.append("lora.core=true: expected false with lora.targets=[], R stands between B and A")
    if lora.virtual_kind == "prefix" and not lora.virtual_tokens:
        problems.append("lora.virtual_tokens=0: expected > 0 with lora.virtual_kind=prefix")
    return problems


def _check_cap(privacy: Privacy) -> list[str]:
    """A cap is planned for the largest site, so its size must be known."""
    if not privacy.max_patients or privacy.mode != "dp":
        return []
    if not privacy.site_patients:
        return ["privacy.site_patients=0: expected the patients of the largest site with privacy.max_patients"]
    if privacy.max_patients < (least := least_cap(privacy.sample_rate, privacy.site_patients)):
        return [
            f"privacy.max_patients={privacy.max_patients}: expected at least sample_rate * site_patients, which is {least}"
        ]
    return []
