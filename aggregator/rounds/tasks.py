"""The task of a round, and which answers to it count. Pure.

    Experiment, round, adapter -> TrainTask
    frame, TrainTask -> TrainResult and its tensors, or the reason why not

A reply counts when every line of this table holds.

| checked                | against                                                               |
| ---------------------- | --------------------------------------------------------------------- |
| the frame              | the wire contract: version, keys, types, SHA-256 of the payload       |
| type, run, round, site | the task, and the name the node joined with                           |
| task_sha256            | the task frame that was sent: a result of another task is not counted |
| size                   | the adapter's: an absurd payload is not decoded                       |
| tensors                | the encoding that was asked for; the keys and shapes of the global    |
|                        | adapter's trained part; all finite                                    |
| num_patients           | 0 to MAX_PATIENTS: it is the weight, 0 where the site does not tell   |
| noisy counts           | within MAX_PATIENTS of 0, and 0 where the task asked for none         |
| steps                  | those of the task                                                     |
| dataset_fingerprint    | a SHA-256: it goes to the registry and the report                     |
| epsilons, delta        | numbers that they can be                                              |
| one reply per site     | the exchange yields one per node, the roster holds one node per site  |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from aggregator.aggregation.mean import check_layout
from aggregator.methods import Method
from aggregator.rounds.stages import Place
from fedmed.config import Experiment, Training
from fedmed.errors import FederationError
from fedmed.messages import OptimizerSpec, PrivacySpec, Refusal, TrainResult, TrainTask, decode
from fedmed.models.adapter import state_sha256
from fedmed.models.encoding import State, add_change, decode_state, sends_changes
from fedmed.privacy.accounting import PrivacyEvent
from fedmed.privacy.calibration import plan_noise

# More patients than the largest hospital groups hold: such a weight would silence every other site.
MAX_PATIENTS = 10_000_000
PAYLOAD_SLACK_BYTES = 1 << 20
_SHA256 = re.compile("[0-9a-f]{64}")


def plan_privacy(experiment: Experiment) -> PrivacySpec:
    """The privacy of every round: the noise is planned once, for the rounds of all stages together. Without privacy it is 0.
    `steps` are those of the first stage; `make_task` puts in each round's own.

    A cap is planned for the largest site that the experiment allows: the sites' counts are not known before the run, and
    a task must have the same bytes after a restart. Each site's ledger charges by the site's own count.

    Raises:
        PrivacyError: no noise reaches the asked epsilon.
    """
    privacy = experiment.privacy
    noise = 0.0
    if privacy.mode == "dp":
        counts = PrivacyEvent(privacy.metrics_noise_multiplier, privacy.sample_rate, experiment.rounds)
        noise = privacy.noise_multiplier or plan_noise(
            privacy.epsilon,
            privacy.delta,
            privacy.sample_rate,
            experiment.steps,
            max_patients=privacy.max_patients,
            num_patients=privacy.site_patients,
            others=[counts] if privacy.metrics_noise_multiplier else [],
        )
    return PrivacySpec(
        mode=privacy.mode,
        noise_multiplier=noise,
        sample_rate=privacy.sample_rate,
        max_grad_norm=privacy.max_grad_norm,
        records_per_patient=privacy.records_per_patient,
        steps=next(iter(experiment.plan.values())).training.local_steps,
        delta=privacy.delta,
        clipping=privacy.clipping,
        max_patients=privacy.max_patients,
        metrics_noise_multiplier=privacy.metrics_noise_multiplier,
        insecure_noise_seed=privacy.insecure_noise_seed,
    )


def learning_rate(training: Training, number: int) -> float:
    """The rate of a stage's round `number`, from 1. With W warm-up rounds of R rounds, and `peak` the experiment's rate:

    | round                     | rate                                                                               |
    | ------------------------- | ---------------------------------------------------------------------------------- |
    | 1 to W                    | peak * number / (W + 1): linear; round W + 1 has the peak                          |
    | after, schedule constant  | peak                                                                               |
    | after, schedule cosine    | peak * (1 + cos(pi p)) / 2 with p = (number - W - 1) / (R - W): from the peak down |
    |                           | towards 0, which round R + 1 would have (Loshchilov and Hutter, arXiv 1608.03983)  |

    No round's rate is 0: a round that spends privacy also trains. The rates are public, and change no guarantee.
    """
    warm_up = training.warmup_rounds
    if number <= warm_up:
        return training.learning_rate * number / (warm_up + 1)
    if training.schedule == "constant":
        return training.learning_rate
    progress = (number - warm_up - 1) / (training.rounds - warm_up)
    return training.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def make_task(
    experiment: Experiment,
    method: Method,
    privacy: PrivacySpec,
    place: Place,
    run: str,
    base_sha256: str,
    frozen: Mapping[str, Tensor],
    rank: int,
) -> TrainTask:
    """The task of the round at `place` for a site of this rank; the same arguments give the same bytes on the wire.

    `frozen`: the adapter's tensors that do not travel down, but follow from the public seed. The scale alpha / rank is the
    same for every rank.
    """
    number, training = place.number, place.stage.training
    return TrainTask(
        run=run,
        round=number,
        rounds=experiment.rounds,
        config_sha256=experiment.sha256,
        base_model=experiment.base_model.name,
        base_sha256=base_sha256,
        method=method.name,
        lora=replace(experiment.lora.spec, rank=rank, alpha=experiment.lora.alpha * rank / experiment.lora.rank),
        init_seed=experiment.seed,
        frozen_sha256=state_sha256(frozen) if frozen else "",
        trainable=method.trained(number),
        returned=method.returned(number),
        privacy=replace(privacy, steps=training.local_steps),
        optimizer=OptimizerSpec(
            training.optimizer,
            learning_rate(training, place.within),
            training.momentum,
            training.weight_decay,
            training.keep_state,
            experiment.federation.proximal_mu,
        ),
        dtype=experiment.federation.wire_dtype,
        precision=training.precision,
        parts=place.stage.curriculum.parts,
        selection=place.selection,
    )


def check_reply(
    frame: bytes,
    task: TrainTask,
    task_sha256: str,
    site: str,
    expected: Mapping[str, Tensor],
    sent: Mapping[str, Tensor],
) -> tuple[TrainResult, State]:
    """The result and what the site trained, when every line of the module's first table holds.

    Args:
        expected: the tensors that the site must return; their shapes alone count.
        sent: what it was sent, before it was rounded for the wire: what it changed is added to that.

    Returns:
        Tensors in float32 that may be views of `frame`: not to be written to.

    Raises:
        FedMedError: with the reason; it names no value of a patient, since a frame holds none.
    """
    result, payload = decode(frame)
    if isinstance(result, Refusal):
        raise FederationError(f"refused ({result.code}): {result.message}")
    if not isinstance(result, TrainResult):
        raise FederationError(f"answered with {result.type}, expected train_result")
    _check_fields(result, task, task_sha256, site)
    limit = sum(4 * tensor.numel() for tensor in expected.values()) + PAYLOAD_SLACK_BYTES
    if len(payload) > limit:
        raise FederationError(f"the adapter has {len(payload)} bytes, expected at most {limit}")
    update = decode_state(payload, task.dtype)
    check_layout(update, expected)
    return result, add_change(sent, update) if sends_changes(task.dtype) else update


def _check_fields(result: TrainResult, task: TrainTask, task_sha256: str, site: str) -> None:
    """Everything that a result says of itself; raises FederationError for the first line that does not hold."""
    found, right = (result.run, result.round, result.site), (task.run, task.round, site)
    if found != right:
        raise FederationError(f"answered for run, round, site {found}, expected {right}")
    if result.task_sha256 != task_sha256:
        raise FederationError(f"answered task {result.task_sha256[:12]!r}, expected {task_sha256[:12]!r}")
    if not 0 <= result.num_patients <= MAX_PATIENTS:
        raise FederationError(f"num_patients={result.num_patients}: expected 0 to {MAX_PATIENTS}")
    most = MAX_PATIENTS if task.privacy.metrics_noise_multiplier else 0
    if not max(abs(result.noisy_correct), abs(result.noisy_patients)) <= most:
        raise FederationError(
            f"noisy counts {result.noisy_correct:g} and {result.noisy_patients:g}: expected within {most} of 0"
        )
    if result.steps != task.privacy.steps:
        raise FederationError(f"took {result.steps} steps, expected {task.privacy.steps}")
    if not _SHA256.fullmatch(result.dataset_fingerprint):
        raise FederationError(
            f"dataset_fingerprint={result.dataset_fingerprint[:80]!r}: expected 64 hexadecimal digits"
        )
    for name, value in (("epsilon", result.epsilon), ("epsilon_total", result.epsilon_total)):
        if value < 0 and value != -1:  # -1 stands for infinity on the wire
            raise FederationError(f"{name}={value:g}: expected 0 or more, or -1 where a round had no privacy")
    if not 0 <= result.delta < 1:
        raise FederationError(f"delta={result.delta:g}: expected 0 to 1")
