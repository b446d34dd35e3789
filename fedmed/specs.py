"""What tasks ask for, in groups of fields: the adapter's shape, a round's privacy, the optimizer, an evaluation's privacy.

Parts of the wire contract, which fedmed.messages owns and hands on under these names. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmed.privacy.selection import Selection as Selection

# Of an adapter on the wire: what they are is told in fedmed.models.encoding.
ENCODINGS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Adapter shape. `parts`: any of language_model, projector, vision_tower; `targets`: module name endings (linear,
    convolution or embedding layers), or the one word `all-linear`; `modules_to_save`: endings of modules that are
    trained whole, without LoRA. `core`: an r x r matrix R between B and A, W0 + s B R A. `virtual_tokens`: so many at the
    start of each prompt; `virtual_kind`: prompt or prefix, what of them is trained (fedmed.models.virtual)."""

    rank: int
    alpha: float
    parts: tuple[str, ...]
    targets: tuple[str, ...]
    modules_to_save: tuple[str, ...] = ()
    core: bool = False
    virtual_tokens: int = 0
    virtual_kind: str = "prompt"


@dataclass(frozen=True, slots=True)
class PrivacySpec:
    """The round's privacy. Noise has standard deviation noise_multiplier * max_grad_norm.

    Attributes:
        mode: `dp` or `none`.
        sample_rate: probability that a patient is drawn in a step.
        max_grad_norm: L2 bound of one patient's share of a step's sum.
        records_per_patient: at most so many records of a drawn patient.
        steps: noisy steps in this round.
        clipping: flat, automatic or per_layer; see fedmed.privacy.clipping.
        max_patients: at most so many drawn patients take part in a step; 0 is no cap.
        metrics_noise_multiplier: noise of the evaluation's counts; 0 sends no counts.
        insecure_noise_seed: of a repeatable test run WITHOUT PRIVACY; -1 draws from the secure generator.
    """

    mode: str
    noise_multiplier: float
    sample_rate: float
    max_grad_norm: float
    records_per_patient: int
    steps: int
    delta: float
    clipping: str = "flat"
    max_patients: int = 0
    metrics_noise_multiplier: float = 0.0
    insecure_noise_seed: int = -1

    @property
    def protects(self) -> bool:
        """Whether patients have any guarantee: mode dp, and noise that nobody can draw again."""
        return self.mode == "dp" and self.insecure_noise_seed < 0


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """`name`: adamw, sgd or adam_bc (see fedmed.training.optimizers); `learning_rate` of this round; `momentum` is
    SGD's momentum or Adam's beta1. `keep_state`: carry the moments over rounds. `proximal_mu`: FedProx's pull towards the
    incoming adapter, mu (w - w0) added to the gradient after the noise."""

    name: str
    learning_rate: float
    momentum: float
    weight_decay: float
    keep_state: bool
    proximal_mu: float = 0.0


@dataclass(frozen=True, slots=True)
class ReleaseSpec:
    """The privacy of one evaluation of the held-out patients, all of whom take part (fedmed.privacy.patient_scores).

    Attributes:
        mode: `dp`, or `none`: exact sums.
        noise_multiplier: noise standard deviation / sensitivity; 0 with mode none.
        insecure_noise_seed: as in PrivacySpec.
    """

    mode: str
    noise_multiplier: float
    delta: float
    insecure_noise_seed: int = -1

    @property
    def protects(self) -> bool:
        """Whether patients have any guarantee, as in PrivacySpec."""
        return self.mode == "dp" and self.insecure_noise_seed < 0
