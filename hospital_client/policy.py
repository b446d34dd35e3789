"""What the hospital allows. A task is compared with policy.yaml before any record is read; it is refused whole or not.

    policy.yaml -> Policy;  TrainTask + patients of the cohort -> nothing, or PolicyRefusal naming every breach

| policy key           | a task is refused when                                                             |
| -------------------- | ---------------------------------------------------------------------------------- |
| base_models          | its base_sha256 is not listed                                                      |
| methods, max_rank    | its method is not listed; its rank is larger                                       |
| min_noise_multiplier | mode `dp` with less noise                                                          |
| allow_no_privacy     | mode `none` and this is false                                                      |
| allow_insecure_noise | its noise comes from a seed and this is false: such a round counts as without      |
|                      | privacy, whatever its mode says                                                    |
| allow_metrics, min_metrics_noise_multiplier | it asks for evaluation counts and this is false, or with     |
|                      | less noise, or without mode `dp`                                                   |
| delta                | mode `dp` with a larger delta, or none at all                                      |
| max_sample_rate, max_local_steps, max_rounds | it asks for more                                           |
| (always)             | its selection of a record depends on other patients' records, with mode `dp`       |
| patient_count        | `hidden`, and it caps the patients of a step: no public count, no accounting       |
| (always)             | it caps the patients of a step below those drawn on average                        |
| allow_metrics, min_metrics_noise_multiplier, | the same of an evaluation of held-out patients, but for `dp`: |
| allow_no_privacy, delta, base_models, max_rank | without it the exact sums leave, where both flags are true  |
| min_patients         | the cohort has fewer (the message does not say how many)                           |
| (always)             | mode, dtype, precision, tensors or numbers that no honest aggregator would send    |
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedmed.errors import PolicyRefusal
from fedmed.messages import ENCODINGS, EvaluateTask, LoraSpec, PrivacySpec, ReleaseSpec, TrainTask
from fedmed.models.kinds import PARTS, TRAINED
from fedmed.privacy.events import least_cap
from fedmed.privacy.patient_scores import scores_problem
from fedmed.privacy.selection import selection_problems
from fedmed.typed import choice, number

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Bounds of a patient's gradient. Outside of them the noise's steps, or what it is added to, leave the range of float32.
LEAST_NORM, MOST_NORM = 1e-6, 1e6
VIRTUAL_KINDS, MOST_VIRTUAL_TOKENS = ("prompt", "prefix"), 512
MOST_NEW_TOKENS = 2048
PRECISIONS = ("float32", "bfloat16")
_RUN = "run: expected a name of up to 128 letters, digits, '.', '-' and '_'"
OPTIMIZERS = ("adamw", "sgd", "adam_bc")
CLIPPINGS = ("flat", "automatic", "per_layer")


@dataclass(frozen=True, slots=True)
class Policy:
    """policy.yaml, parsed. configs/site/policy.yaml says what every key means."""

    base_models: tuple[str, ...]
    methods: tuple[str, ...]
    allow_no_privacy: bool
    allow_insecure_noise: bool
    allow_metrics: bool
    max_rank: int = number(1)
    min_noise_multiplier: float = number(0, above=True)
    min_metrics_noise_multiplier: float = number(0, above=True)
    epsilon_budget: float = number(0, above=True)
    delta: float = number(0, 1, above=True, below=True)
    min_patients: int = number(1)
    patient_count: str = choice("exact", "rounded", "hidden")
    dataset_fingerprint: str = choice("cohort", "data")
    max_sample_rate: float = number(0, 1, above=True)
    max_local_steps: int = number(1)
    max_rounds: int = number(1)

    def released_patients(self, num_patients: int) -> int:
        """The patient count that may leave the site: exact, rounded to the nearest 10 (at least 10), or 0: not told."""
        if self.patient_count == "exact":
            return num_patients
        return max(10, 10 * ((num_patients + 5) // 10)) if self.patient_count == "rounded" else 0

    def most_patients(self, num_patients: int) -> int:
        """A public number that the cohort's count is below; 0 where the count is hidden, and there is none.

        What a cap costs grows with it (fedmed.privacy.events). Rounding hides up to 4 patients; the fifth is the one
        whose presence nobody may tell.
        """
        if self.patient_count == "hidden":
            return 0
        return self.released_patients(num_patients) + (1 if self.patient_count == "exact" else 5)

    def nominal_patients(self, num_patients: int) -> int:
        """The patient count that scales the gradient. Public, as the release is: the step's size shows it.

        Where the count is hidden the policy's minimum stands in: the one number of patients that is not of the data.
        """
        return self.min_patients if self.patient_count == "hidden" else self.released_patients(num_patients)


def check_cohort(policy: Policy, num_patients: int, what: str = "patients") -> None:
    """Raises PolicyRefusal when the cohort is smaller than the policy's minimum; the count itself is not named."""
    if num_patients < policy.min_patients:
        raise PolicyRefusal(
            f"the site has fewer {what} than its policy's min_patients={policy.min_patients}",
            "add patients to the manifest, or let the hospital lower min_patients in policy.yaml",
        )


def check_task(policy: Policy, task: TrainTask, num_patients: int) -> None:
    """Raises PolicyRefusal with every breach in one line; knows nothing of records, only the cohort's size."""
    breaches = [
        *_model_breaches(policy, task),
        *_size_breaches(policy, task),
        *privacy_breaches(policy, task.privacy),
        *_cap_breaches(policy, task.privacy, num_patients),
    ]
    _refuse(breaches)
    check_cohort(policy, num_patients)


def check_evaluation(policy: Policy, task: EvaluateTask, num_patients: int) -> None:
    """As `check_task`, of an evaluation and the number of held-out patients."""
    breaches = [*_base_breaches(policy, task.base_sha256), *_lora_breaches(policy, task.lora)]
    if not RUN_NAME.fullmatch(task.run):
        breaches.append(_RUN)
    if not 0 <= task.round <= policy.max_rounds:
        breaches.append(f"round={task.round}, expected 0 to {policy.max_rounds}")
    if task.dtype not in ENCODINGS:
        breaches.append(f"dtype={task.dtype!r:.40}, expected {' or '.join(ENCODINGS)}")
    if not set(task.personal) <= set(TRAINED):
        breaches.append(f"personal={list(task.personal)!r:.80}, expected some of {', '.join(TRAINED)}")
    if problem := scores_problem(task.scores):
        breaches.append(problem)
    if not 1 <= task.max_new_tokens <= MOST_NEW_TOKENS:
        breaches.append(f"max_new_tokens={task.max_new_tokens}, expected 1 to {MOST_NEW_TOKENS}")
    _refuse([*breaches, *release_breaches(policy, task.privacy)])
    check_cohort(policy, num_patients, "held-out patients")


def _refuse(breaches: list[str]) -> None:
    if breaches:
        raise PolicyRefusal(
            f"the site's policy does not allow the task: {'; '.join(breaches)}",
            "change the experiment, or ask the hospital to change policy.yaml",
        )


def _model_breaches(policy: Policy, task: TrainTask) -> list[str]:
    breaches = _base_breaches(policy, task.base_sha256)
    if task.method not in policy.methods:
        breaches.append(f"method={task.method[:64]!r}, expected one of {', '.join(policy.methods)}")
    breaches += _lora_breaches(policy, task.lora)
    if not task.trainable or not set(task.trainable) <= set(TRAINED):
        breaches.append(f"trainable={list(task.trainable)!r:.80}, expected some of {', '.join(TRAINED)}")
    if not set(task.parts) <= set(PARTS):
        breaches.append(f"parts={list(task.parts)!r:.80}, expected some of {', '.join(PARTS)}")
    if not task.returned or not set(task.returned) <= set(task.trainable):
        breaches.append(f"returned={list(task.returned)!r:.80}, expected some of trainable")
    return breaches


def _base_breaches(policy: Policy, base_sha256: str) -> list[str]:
    if base_sha256 in policy.base_models:
        return []
    return [f"base_sha256={base_sha256[:12]!r}, expected one of {_short(policy.base_models)}"]


def _lora_breaches(policy: Policy, lora: LoraSpec) -> list[str]:
    breaches = []
    if not 1 <= lora.rank <= policy.max_rank:
        breaches.append(f"lora.rank={lora.rank}, expected 1 to {policy.max_rank}")
    if not lora.alpha > 0:
        breaches.append(f"lora.alpha={lora.alpha:g}, expected > 0")
    if not 0 <= lora.virtual_tokens <= MOST_VIRTUAL_TOKENS:
        breaches.append(f"lora.virtual_tokens={lora.virtual_tokens}, expected 0 to {MOST_VIRTUAL_TOKENS}")
    if lora.virtual_kind not in VIRTUAL_KINDS:
        breaches.append(f"lora.virtual_kind={lora.virtual_kind!r:.40}, expected {' or '.join(VIRTUAL_KINDS)}")
    return breaches


def _size_breaches(policy: Policy, task: TrainTask) -> list[str]:
    breaches = []
    if not RUN_NAME.fullmatch(task.run):
        breaches.append(_RUN)
    if not 1 <= task.round <= task.rounds <= policy.max_rounds:
        breaches.append(f"round={task.round} of rounds={task.rounds}, expected 1 to {policy.max_rounds}")
    if task.dtype not in ENCODINGS:
        breaches.append(f"dtype={task.dtype!r:.40}, expected {' or '.join(ENCODINGS)}")
    if task.precision not in PRECISIONS:
        breaches.append(f"precision={task.precision!r:.40}, expected {' or '.join(PRECISIONS)}")
    if task.optimizer.name not in OPTIMIZERS:
        breaches.append(f"optimizer.name={task.optimizer.name!r:.40}, expected {' or '.join(OPTIMIZERS)}")
    if not task.optimizer.proximal_mu >= 0:
        breaches.append(f"optimizer.proximal_mu={task.optimizer.proximal_mu:g}, expected >= 0")
    breaches += [f"selection: {problem}"[:160] for problem in selection_problems(task.selection, task.privacy.mode)]
    if task.privacy.clipping not in CLIPPINGS:
        breaches.append(f"privacy.clipping={task.privacy.clipping!r:.40}, expected {' or '.join(CLIPPINGS)}")
    return breaches


def privacy_breaches(policy: Policy, privacy: PrivacySpec) -> list[str]:
    """What the policy does not allow of a task's noise, sampling and steps; empty when all is well."""
    breaches = []
    if privacy.mode == "none" and not policy.allow_no_privacy:
        breaches.append("privacy.mode='none', expected 'dp' (allow_no_privacy is false)")
    elif privacy.mode == "dp":
        if privacy.noise_multiplier < policy.min_noise_multiplier:
            least = policy.min_noise_multiplier
            breaches.append(f"privacy.noise_multiplier={privacy.noise_multiplier:g}, expected at least {least:g}")
        if not 0 < privacy.delta <= policy.delta:
            breaches.append(f"privacy.delta={privacy.delta:g}, expected > 0 and at most {policy.delta:g}")
    elif privacy.mode != "none":
        breaches.append(f"privacy.mode={privacy.mode!r:.40}, expected dp or none")
    breaches += _seed_breaches(policy, privacy.insecure_noise_seed)
    if not 0 < privacy.sample_rate <= policy.max_sample_rate:
        breaches.append(
            f"privacy.sample_rate={privacy.sample_rate:g}, expected > 0 and at most {policy.max_sample_rate:g}"
        )
    if privacy.metrics_noise_multiplier:
        breaches += _metrics_breaches(policy, privacy)
    if not 1 <= privacy.steps <= policy.max_local_steps:
        breaches.append(f"privacy.steps={privacy.steps}, expected 1 to {policy.max_local_steps}")
    if privacy.records_per_patient < 1:
        breaches.append(f"privacy.records_per_patient={privacy.records_per_patient}, expected at least 1")
    if not LEAST_NORM <= privacy.max_grad_norm <= MOST_NORM:
        breaches.append(f"privacy.max_grad_norm={privacy.max_grad_norm:g}, expected {LEAST_NORM:g} to {MOST_NORM:g}")
    return breaches


def _cap_breaches(policy: Policy, privacy: PrivacySpec, num_patients: int) -> list[str]:
    """Of a cap on the patients of a step. Names the public bound alone, never the count."""
    cap, most = privacy.max_patients, policy.most_patients(num_patients)
    if cap < 0:
        return [f"privacy.max_patients={cap}, expected >= 0 (0 is no cap)"]
    if not cap or privacy.mode != "dp":
        return []
    if not most:
        return [
            f"privacy.max_patients={cap}, expected 0: what a cap costs depends on the patient count, which is hidden here"
        ]
    if cap < (least := least_cap(privacy.sample_rate, most)):
        return [f"privacy.max_patients={cap}, expected at least {least}: sample_rate times the site's {most} patients"]
    return []


def _metrics_breaches(policy: Policy, privacy: PrivacySpec) -> list[str]:
    """Of a task that asks for evaluation counts."""
    asked, least = privacy.metrics_noise_multiplier, policy.min_metrics_noise_multiplier
    if not policy.allow_metrics:
        return [f"privacy.metrics_noise_multiplier={asked:g}, expected 0 (allow_metrics is false)"]
    if privacy.mode != "dp":
        return [f"privacy.metrics_noise_multiplier={asked:g}, expected 0 without mode dp"]
    if not asked >= least:
        return [f"privacy.metrics_noise_multiplier={asked:g}, expected at least {least:g}, or 0"]
    return []


def release_breaches(policy: Policy, privacy: ReleaseSpec) -> list[str]:
    """Of the privacy of an evaluation."""
    breaches, asked = [], privacy.noise_multiplier
    if not policy.allow_metrics:
        breaches.append("an evaluation of held-out patients, expected none (allow_metrics is false)")
    if privacy.mode == "none":
        if not policy.allow_no_privacy:
            breaches.append("privacy.mode='none', expected 'dp' (allow_no_privacy is false)")
        if asked:
            breaches.append(f"privacy.noise_multiplier={asked:g}, expected 0 without mode dp")
    elif privacy.mode == "dp":
        if not asked >= (least := policy.min_metrics_noise_multiplier):
            breaches.append(f"privacy.noise_multiplier={asked:g}, expected at least {least:g}")
        if not 0 < privacy.delta <= policy.delta:
            breaches.append(f"privacy.delta={privacy.delta:g}, expected > 0 and at most {policy.delta:g}")
    else:
        breaches.append(f"privacy.mode={privacy.mode!r:.40}, expected dp or none")
    return breaches + _seed_breaches(policy, privacy.insecure_noise_seed)


def _seed_breaches(policy: Policy, seed: int) -> list[str]:
    if seed < 0 or policy.allow_insecure_noise:
        return []
    return [f"privacy.insecure_noise_seed={seed}, expected -1 (allow_insecure_noise is false)"]


def _short(hashes: tuple[str, ...]) -> str:
    return ", ".join(digest[:12] for digest in hashes)
