"""An experiment's configuration as frozen types with ranges; configs/base.yaml says every key's unit and effect.

Defaults live in configs/base.yaml alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from fedmed.data.schema import TASKS
from fedmed.messages import LoraSpec
from fedmed.privacy.patient_scores import SCORES
from fedmed.typed import choice, choices, number, texts


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
    shots: int = number(0, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    sites: tuple[str, ...]
    scheme: str = choice("iid", "dirichlet", "field")
    field: str
    alpha: float = number(0, above=True)
    held_out: float = number(0, 1, below=True)


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
class Curriculum:
    parts: tuple[str, ...] = choices("language_model", "projector", "vision_tower")
    tasks: tuple[str, ...] = choices(*TASKS)
    sources: tuple[str, ...] = texts()
    grading: str = choice("text", "loss")
    start_difficulty: int = number(1, 5)
    start_share: float = number(0, 1, above=True)
    metric: str = choice("accuracy", "closed_accuracy", "open_recall", "open_f1")
    min_gain: float = number(-1, 1)
    patience: int = number(0)

    @property
    def is_judged(self) -> bool:
        """Whether anything depends on the score on the validation split."""
        return self.patience > 0 or self.min_gain > -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the run's rounds; see `Experiment.plan`."""

    training: Training
    curriculum: Curriculum


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
    tasks: tuple[str, ...] = choices(*TASKS)
    batch_size: int = number(1)
    max_new_tokens: int = number(1)
    federated: bool
    scores: tuple[str, ...] = choice(*SCORES)
    epsilon: float = number(0, above=True)
    noise_multiplier: float = number(0)


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
    curriculum: Curriculum
    stages: dict[str, Stage]
    federation: Federation
    evaluation: Evaluation
    registry: Registry
    serving: Serving

    @property
    def plan(self) -> dict[str, Stage]:
        """The stages in their order; an experiment without any is one stage of all its rounds, without a name."""
        return dict(self.stages) or {"": Stage(training=self.training, curriculum=self.curriculum)}

    @property
    def rounds(self) -> int:
        """Of all stages; early stopping may leave some out."""
        return sum(stage.training.rounds for stage in self.plan.values())

    @property
    def steps(self) -> int:
        """Noisy steps at each site, of all rounds."""
        return sum(stage.training.rounds * stage.training.local_steps for stage in self.plan.values())

    @property
    def most_local_steps(self) -> int:
        """Of one round: what a site's policy has to allow."""
        return max(stage.training.local_steps for stage in self.plan.values())

    @property
    def sha256(self) -> str:
        """Hash of the resolved configuration; travels with every task and into the registry."""
        canonical = json.dumps(to_dict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain
