"""The rules of an experiment that span several keys. Pure: a configuration in, one line for each problem out."""

from __future__ import annotations

from urllib.parse import urlsplit

from fedmed.experiment import Experiment, Lora, Privacy, Stage
from fedmed.privacy.events import least_cap
from fedmed.privacy.selection import Selection, selection_problems

ADDRESS_ALONE = (
    "holds a name or password, expected MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
)


def cross_check(experiment: Experiment) -> list[str]:
    """Every problem that no single key has, each beginning with a key."""
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
    privacy = experiment.privacy
    if bad := [name for name in experiment.stages if not name.replace("-", "").replace("_", "").isalnum()]:
        problems.append(f"stages: {bad!r}: expected letters, digits, - and _ only")
    for name, stage in experiment.plan.items():
        problems += [(f"stages.{name}." if name else "") + line for line in _check_stage(stage, experiment)]
    if privacy.mode == "dp" and privacy.delta == 0:
        problems.append("privacy.delta=0.0: expected > 0 with privacy.mode=dp")
    if privacy.mode == "none" and (asked := privacy.metrics_noise_multiplier):
        problems.append(f"privacy.metrics_noise_multiplier={asked:g}: expected 0 with privacy.mode=none")
    if experiment.evaluation.federated and privacy.mode == "none" and (noise := experiment.evaluation.noise_multiplier):
        problems.append(f"evaluation.noise_multiplier={noise:g}: expected 0 with privacy.mode=none")
    if len(set(experiment.evaluation.scores)) != len(experiment.evaluation.scores):
        problems.append(f"evaluation.scores={list(experiment.evaluation.scores)!r}: expected each once")
    if has_secret(experiment.registry.uri):
        problems.append(f"registry.uri: {ADDRESS_ALONE}")
    return problems + _check_adapter(experiment.lora) + _check_cap(privacy)


def _check_adapter(lora: Lora) -> list[str]:
    problems = []
    if not (lora.targets or lora.modules_to_save or lora.virtual_tokens):
        problems.append("lora.targets=[]: expected some with neither lora.modules_to_save nor lora.virtual_tokens")
    if lora.core and not lora.targets:
        problems.append("lora.core=true: expected false with lora.targets=[], R stands between B and A")
    if lora.virtual_kind == "prefix" and not lora.virtual_tokens:
        problems.append("lora.virtual_tokens=0: expected > 0 with lora.virtual_kind=prefix")
    return problems


def _check_stage(stage: Stage, experiment: Experiment) -> list[str]:
    """Problems of a stage, each beginning with its key."""
    problems, training, curriculum = [], stage.training, stage.curriculum
    if (warm_up := training.warmup_rounds) >= training.rounds:
        problems.append(f"training.warmup_rounds={warm_up}: expected below {training.rounds}, the rounds")
    if strangers := sorted(set(curriculum.parts) - set(experiment.lora.parts)):
        problems.append(f"curriculum.parts: {strangers!r} are not among lora.parts={list(experiment.lora.parts)}")
    selection = Selection(grading=curriculum.grading, easiest_share=curriculum.start_share)
    found = selection_problems(selection, experiment.privacy.mode)
    return problems + [line.replace("easiest_share", "curriculum.start_share", 1) for line in found]


def has_secret(uri: str) -> bool:
    """Whether an address holds a name or password: it would stand in files, in MLflow and in the list of processes."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "@" in uri
    return parts.username is not None or parts.password is not None


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
