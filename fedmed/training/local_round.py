"""One round of training at a site: the adapter comes in, is trained on the site's patients, and goes out.

    global adapter -> [draw patients -> draw records -> gradient per patient -> clip -> sum -> noise -> / lot -> step] x n
    -> trained adapter

    >>> trainer = LocalTrainer(base, manifest, SecureRandom())
    >>> trained = trainer.train(plan, state, init_seed=0)

| case                 | what holds                                                                             |
| -------------------- | -------------------------------------------------------------------------------------- |
| mode dp              | each step is one Poisson-subsampled Gaussian event with the plan's noise_multiplier    |
|                      | and sample_rate, for adding or removing a patient; adapter and moments follow from     |
|                      | these events alone                                                                     |
| scale of the step    | the noisy sum is divided by `lot_size`, a public number, never by how many were drawn  |
| empty draw           | dp: a step of noise alone; none: no step                                               |
| mode none            | the same draws; the mean gradient of those drawn; no clipping, no noise, no guarantee  |
| noise_multiplier 0   | clipping without noise: no guarantee, epsilon is infinity                              |
| stopped or failed    | nothing leaves; the moments are forgotten; the steps stay spent                        |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from fedmed.data.collate import Collator
from fedmed.data.manifest import Manifest
from fedmed.errors import FederationError, ModelError, PrivacyError
from fedmed.messages import LoraSpec, OptimizerSpec, PrivacySpec
from fedmed.models.adapter import (
    State,
    adapter_parameters,
    adapter_state,
    add_adapter,
    load_adapter_state,
    reset_adapter,
    state_sha256,
)
from fedmed.models.base import BaseModel
from fedmed.privacy.clipping import clip_and_sum
from fedmed.privacy.noise import add_noise
from fedmed.privacy.random import RandomSource
from fedmed.privacy.sampling import draw_patients, draw_records
from fedmed.training.batches import EncodedExamples, Group, chunks, pack
from fedmed.training.patient_gradients import PatientGradients, backward, example_losses

_BETA2 = 0.999


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What a round does.

    Attributes:
        lora, privacy, optimizer: as the task says; the site's policy has allowed them.
        trainable: endings of the adapter tensors to train and return, such as ("lora_A", "lora_B").
        precision: float32, or bfloat16: autocast of the frozen model.
        physical_batch: records in one forward pass; changes time and memory alone.
        lot_size: expected patients a step: sample_rate * RELEASED number of patients.
        run: moments are kept from round to round of one run only.
        frozen_sha256: `state_sha256` of the adapter tensors that do not come in with the state; "" takes any.
    """

    lora: LoraSpec
    privacy: PrivacySpec
    optimizer: OptimizerSpec
    trainable: tuple[str, ...]
    precision: str
    physical_batch: int
    lot_size: float
    run: str = ""
    frozen_sha256: str = ""

    def __post_init__(self) -> None:
        if self.privacy.mode not in ("dp", "none"):
            raise PrivacyError(f"privacy mode={self.privacy.mode!r}: expected dp or none")
        if not self.lot_size > 0:
            raise PrivacyError(f"lot_size={self.lot_size}: expected > 0", "sample_rate and the patient count set it")
        if self.physical_batch < 1:
            raise ModelError(f"physical_batch={self.physical_batch}: expected >= 1")
        if self.precision not in ("float32", "bfloat16"):
            raise ModelError(f"precision={self.precision!r}: expected float32 or bfloat16")
        if self.optimizer.name not in ("adamw", "sgd"):
            raise ModelError(f"optimizer={self.optimizer.name!r}: expected adamw or sgd")


class LocalTrainer:
    """Trains rounds on one manifest. Keeps the model with its adapter, encoded examples and moments between them.

    Args:
        base: the frozen model, on its device; its layers get an adapter in place.
        manifest: the site's examples.
        random: source of draws and noise: SecureRandom, except in tests.
    """

    def __init__(self, base: BaseModel, manifest: Manifest, random: RandomSource) -> None:
        self._base = base
        self._manifest = manifest
        self._random = random
        positions = getattr(base.model.config.get_text_config(), "max_position_embeddings", 2048)
        self._examples = EncodedExamples(manifest, Collator(base.processor, positions))
        self._adapted: tuple[LoraSpec, PeftModel] | None = None
        self._optimizer: tuple[tuple[object, ...], torch.optim.Optimizer] | None = None

    def check(self, plan: RoundPlan, state: Mapping[str, Tensor], init_seed: int) -> list[str]:
        """All that `train` can refuse before it reads a record; a site asks this before it reserves privacy.

        Returns:
            Keys of the adapter tensors that `state` lacks and that are drawn from `init_seed`.

        Raises:
            ModelError: as `train`.
        """
        model = self._prepare(plan, state, init_seed)
        if not adapter_parameters(model, plan.trainable):
            raise ModelError(f"trainable={list(plan.trainable)}: expected endings such as lora_A or lora_B")
        return [key for key in adapter_parameters(model) if key not in state]

    def train(
        self, plan: RoundPlan, state: Mapping[str, Tensor], init_seed: int, should_stop: Callable[[], bool] = bool
    ) -> State:
        """The tensors `plan.trainable` after one round that starts from `state`.

        Args:
            state: the global adapter; what it lacks is drawn from `init_seed`.
            should_stop: asked before every physical batch.

        Raises:
            ModelError: the state does not fit the model, or the frozen tensors are not the expected ones.
            PrivacyError: a gradient cannot be attributed to a patient.
            FederationError: `should_stop` said so.
        """
        model = self._prepare(plan, state, init_seed)
        parameters = adapter_parameters(model, plan.trainable)
        if not parameters:
            raise ModelError(f"trainable={list(plan.trainable)}: expected endings such as lora_A or lora_B")
        for key, parameter in adapter_parameters(model).items():
            parameter.requires_grad_(key in parameters)
        optimizer = self._take_optimizer(plan, parameters)
        _Round(
            plan, model, parameters, optimizer, self._examples, self._manifest.patients, self._random, should_stop
        ).run()
        self._keep_optimizer(plan, parameters, optimizer)
        return adapter_state(model, plan.trainable)

    def close(self) -> None:
        """Takes the adapter off the base model again."""
        if self._adapted is not None:
            self._adapted[1].unload()
        self._adapted, self._optimizer = None, None

    def _prepare(self, plan: RoundPlan, state: Mapping[str, Tensor], init_seed: int) -> PeftModel:
        if self._adapted is None or self._adapted[0] != plan.lora:
            self.close()
            self._adapted = (plan.lora, add_adapter(self._base.model, plan.lora, init_seed))
        model = self._adapted[1]
        reset_adapter(model, init_seed)
        load_adapter_state(model, state)
        if plan.frozen_sha256:
            frozen = {key: value for key, value in adapter_state(model).items() if key not in state}
            if (found := state_sha256(frozen)) != plan.frozen_sha256:
                raise ModelError(
                    f"adapter tensors drawn here from init_seed have sha256 {found[:12]}, expected "
                    f"{plan.frozen_sha256[:12]}",
                    "install the same FedMed and torch releases on both sides",
                )
        return model

    def _take_optimizer(self, plan: RoundPlan, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The run's optimizer with its moments, or a new one. Taken out: a round that fails leaves none behind."""
        kept, self._optimizer = self._optimizer, None
        if kept and kept[0] == _optimizer_key(plan, parameters):
            return kept[1]
        return _new_optimizer(plan.optimizer, list(parameters.values()))

    def _keep_optimizer(
        self, plan: RoundPlan, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        if plan.optimizer.keep_state:
            self._optimizer = (_optimizer_key(plan, parameters), optimizer)


def _optimizer_key(plan: RoundPlan, parameters: Mapping[str, nn.Parameter]) -> tuple[object, ...]:
    return (plan.run, plan.optimizer, plan.lora, tuple(parameters))


def _new_optimizer(spec: OptimizerSpec, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if spec.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay
        )
    betas = (spec.momentum, _BETA2)
    return torch.optim.AdamW(parameters, lr=spec.learning_rate, betas=betas, weight_decay=spec.weight_decay)


@dataclass(frozen=True)
class _Round:
    """The steps of one round."""

    plan: RoundPlan
    model: PeftModel
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    examples: EncodedExamples
    patients: Sequence[Sequence[int]]
    random: RandomSource
    should_stop: Callable[[], bool]

    def run(self) -> None:
        """All steps; leaves neither hooks nor gradients behind."""
        private = self.plan.privacy.mode == "dp"
        self.model.eval()
        engine = PatientGradients(self.model, self.parameters, self.plan.precision) if private else None
        try:
            for step in range(self.plan.privacy.steps):
                drawn = self._draw()
                gradients = self._private_gradient(engine, drawn) if engine else self._mean_gradient(drawn)
                self._apply(gradients, check=step == 0)
        finally:
            if engine:
                engine.close()
            self.optimizer.zero_grad(set_to_none=True)

    def _draw(self) -> list[list[int]]:
        """Records of each drawn patient; patients with texts of similar length stand together, to pad less."""
        privacy = self.plan.privacy
        drawn = draw_patients(len(self.patients), privacy.sample_rate, self.random)
        records = [draw_records(self.patients[index], privacy.records_per_patient, self.random) for index in drawn]
        return sorted(records, key=lambda own: max(self.examples.text_size(record) for record in own))

    def _private_gradient(self, engine: PatientGradients, drawn: list[list[int]]) -> list[Tensor]:
        """Clipped, summed over all physical batches, noised once, divided by the public lot size."""
        privacy = self.plan.privacy
        total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.parameters.values()]
        for group in pack(drawn, self.plan.physical_batch):
            clipped = clip_and_sum(self._group_gradients(engine, group), privacy.max_grad_norm)
            for target, part in zip(total, clipped, strict=True):
                target.add_(part)
        noisy = add_noise(total, privacy.noise_multiplier * privacy.max_grad_norm, self.random)
        return [value / self.plan.lot_size for value in noisy]

    def _group_gradients(self, engine: PatientGradients, group: Group) -> list[Tensor]:
        """Gradient of every patient of the group [P, ...], added up over its chunks."""
        total: list[Tensor] = []
        for chunk in chunks(group, self.plan.physical_batch):
            self._stop_if_asked()
            batch = self.examples.batch(chunk.records).to(self._device)
            owner, weight = chunk.owner.to(self._device), chunk.weight.to(self._device)
            part = engine.collect(batch, owner, weight, len(group.patients))
            total = [old.add_(new) for old, new in zip(total, part, strict=True)] if total else part
        return total

    def _mean_gradient(self, drawn: list[list[int]]) -> list[Tensor]:
        """Mode none: the plain mean over the drawn patients; [] when nobody was drawn."""
        if not drawn:
            return []
        self.optimizer.zero_grad(set_to_none=True)
        for group in pack(drawn, self.plan.physical_batch):
            for chunk in chunks(group, self.plan.physical_batch):
                self._stop_if_asked()
                batch = self.examples.batch(chunk.records).to(self._device)
                losses = example_losses(self.model, batch, self.plan.precision)
                backward((losses * chunk.weight.to(self._device)).sum() / len(drawn))
        return [_gradient(parameter) for parameter in self.parameters.values()]

    def _apply(self, gradients: list[Tensor], *, check: bool) -> None:
        """One optimizer step. `check`: that every tensor with a gradient moved, so that what is trained is what is sent."""
        if not gradients:
            return
        before = [parameter.detach().clone() for parameter in self.parameters.values()] if check else []
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for (key, parameter), old, gradient in zip(self.parameters.items(), before, gradients, strict=False):
            if bool(gradient.any()) and torch.equal(parameter, old):
                raise ModelError(
                    f"adapter tensor {key} did not move in the first step although its gradient is not zero"
                )

    @property
    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _stop_if_asked(self) -> None:
        if self.should_stop():
            raise FederationError("the round was stopped before its last step", "what it had reserved stays spent")


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
