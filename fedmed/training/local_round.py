"""One round of training at a site: the adapter comes in, is trained on the site's patients, and goes out.

    global adapter -> [noisy counts of right answers, where asked for]
    -> [draw patients -> draw records -> gradient per patient -> clip -> sum -> noise -> / lot -> step] x n
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
| consent withdrawn    | the patient is left out after the draw, from the next step on; the draw of the others, |
|                      | the lot size and the accounting do not change                                          |
| moments              | kept through a run, of each set of trained kinds apart (RoLoRA trains A and B in turn) |
| stopped or failed    | nothing leaves; the moments are forgotten; the steps stay spent                        |
| proximal_mu          | FedProx: mu (w - w0) on top of the noisy gradient; no further cost                     |
| parts                | of the others the tensors that came in come back                                       |
| selection            | patients are drawn from all; a drawn one without a selected record adds nothing        |
| too long a record    | adds nothing, and the site's log says so: see EncodedExamples                          |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn

from fedmed.data.collate import Collator
from fedmed.data.manifest import Manifest
from fedmed.errors import ModelError
from fedmed.messages import LoraSpec, OptimizerSpec
from fedmed.models.adapter import (
    State,
    adapter_parameters,
    adapter_state,
    load_adapter_state,
    reset_adapter,
    state_sha256,
)
from fedmed.models.base import BaseModel, positions_of
from fedmed.models.kinds import kind_of, part_of
from fedmed.models.prompts import adapted_processor
from fedmed.privacy.counts import NoisyCounts
from fedmed.privacy.mechanism import Mechanism
from fedmed.privacy.patient_scores import PatientScores
from fedmed.privacy.random import RandomSource
from fedmed.training.adapted import AdaptedBase
from fedmed.training.batches import EncodedExamples
from fedmed.training.device_memory import PhysicalBatch, set_checkpointing
from fedmed.training.held_out import score_patients
from fedmed.training.local_evaluation import count_right
from fedmed.training.optimizers import begin_round, make_optimizer
from fedmed.training.proof import RECORDS, prove
from fedmed.training.selection import selected_records
from fedmed.training.steps import RoundPlan, Steps


class AdapterShape(Protocol):
    """What is known of an adapter before its tensors are: see RoundPlan."""

    @property
    def lora(self) -> LoraSpec: ...
    @property
    def frozen_sha256(self) -> str: ...
    @property
    def personal(self) -> tuple[str, ...]: ...


class LocalTrainer:
    """Trains rounds on one manifest. Keeps the model with its adapter, encoded examples and moments between them.

    Args:
        base: the frozen model, on its device; its layers get an adapter in place. An AdaptedBase may be shared.
        manifest: the site's examples.
        random: source of draws and noise: SecureRandom, except in tests.
        mechanism: how patients are drawn, clipped and noised; the audit puts faulty ones in.
        withdrawn: indices into `manifest.patients` that no step may use; asked in every step, may raise.
    """

    def __init__(
        self,
        base: BaseModel | AdaptedBase,
        manifest: Manifest,
        random: RandomSource,
        mechanism: Mechanism | None = None,
        withdrawn: Callable[[], Collection[int]] = frozenset,
    ) -> None:
        self._base = base if isinstance(base, AdaptedBase) else AdaptedBase(base)
        self._manifest = manifest
        self._random = random
        self._mechanism = mechanism or Mechanism()
        self._batch: tuple[tuple[int, LoraSpec], PhysicalBatch] | None = None
        self._withdrawn = withdrawn
        self._examples: tuple[int, EncodedExamples] | None = None
        self._optimizers: dict[_Moments, torch.optim.Optimizer] = {}

    def check(self, plan: RoundPlan, state: Mapping[str, Tensor], init_seed: int) -> list[str]:
        """All that `train` can refuse before it reads a record; a site asks this before it reserves privacy.

        Returns:
            Keys of the adapter tensors that `state` lacks and that are drawn from `init_seed`, personal ones aside.

        Raises:
            ModelError: as `train`.
            PrivacyError: a layer's gradient cannot be told apart by patient; names it.
        """
        model, _ = self._trained(plan, state, init_seed)
        return _lacking(model, state, plan.personal)

    def train(
        self,
        plan: RoundPlan,
        state: Mapping[str, Tensor],
        init_seed: int,
        should_stop: Callable[[], bool] = bool,
        random: RandomSource | None = None,
    ) -> State:
        """The tensors `plan.trainable` after one round that starts from `state`.

        Args:
            state: the global adapter, and the site's personal tensors where it has some; what is lacking is drawn from
                `init_seed`.
            should_stop: asked before every physical batch.
            random: draws and noise of this round alone, instead of the trainer's source.

        Raises:
            ModelError: the state does not fit the model, or the frozen tensors are not the expected ones.
            PrivacyError: a gradient cannot be attributed to a patient.
            FederationError: `should_stop` said so.
        """
        model, parameters = self._trained(plan, state, init_seed)
        for key, parameter in adapter_parameters(model).items():
            parameter.requires_grad_(key in parameters)
        optimizer = self._take_optimizer(plan, parameters)
        Steps(
            plan,
            model,
            parameters,
            optimizer,
            self._examples_for(plan.lora),
            self._selected(plan),
            random or self._random,
            should_stop,
            self._mechanism,
            self._batch_for(plan),
            self._withdrawn,
        ).run()
        self._keep_optimizer(plan, parameters, optimizer)
        return adapter_state(model, plan.trainable)

    def count(
        self,
        plan: RoundPlan,
        state: Mapping[str, Tensor],
        init_seed: int,
        should_stop: Callable[[], bool] = bool,
        random: RandomSource | None = None,
    ) -> NoisyCounts:
        """How well `state` answers the site's patients, where the plan asks for it: see fedmed.training.local_evaluation.

        Args and Raises: as `train`.
        """
        model = self._prepare(plan, state, init_seed)
        patients, source = self._selected(plan), random or self._random
        batch = self._batch_for(plan)
        examples = self._examples_for(plan.lora)
        return count_right(plan, model, examples, patients, source, batch, should_stop, self._withdrawn)

    def lacking(
        self, shape: AdapterShape, state: Mapping[str, Tensor], init_seed: int, max_new_tokens: int
    ) -> list[str]:
        """All that `score` can refuse before it reads a record. Returns and raises as `check`, of no training."""
        if (positions := positions_of(self._base.base.model)) <= max_new_tokens:
            raise ModelError(f"max_new_tokens={max_new_tokens}: expected less than the model's {positions} positions")
        model = self._prepare(shape, state, init_seed)
        return _lacking(model, state, shape.personal)

    def score(
        self,
        shape: AdapterShape,
        state: Mapping[str, Tensor],
        init_seed: int,
        held_out: Manifest,
        *,
        physical_batch: int,
        max_new_tokens: int,
        should_stop: Callable[[], bool] = bool,
        withdrawn: Callable[[], Collection[int]] = frozenset,
    ) -> list[PatientScores]:
        """How well `state` answers each of other patients than those that are trained on: see fedmed.training.held_out.

        Args and Raises: as `train`, and `score_patients`.
        """
        return score_patients(
            self._prepare(shape, state, init_seed),
            adapted_processor(self._base.base, shape.lora),
            held_out,
            batch=PhysicalBatch(physical_batch),
            max_new_tokens=max_new_tokens,
            should_stop=should_stop,
            withdrawn=withdrawn,
        )

    def _examples_for(self, spec: LoraSpec) -> EncodedExamples:
        """The site's examples with prompts for this adapter; encoded again only where its virtual tokens are others."""
        if self._examples is None or self._examples[0] != spec.virtual_tokens:
            self._examples = (spec.virtual_tokens, EncodedExamples(self._manifest, self._collator(spec)))
        return self._examples[1]

    def _collator(self, spec: LoraSpec) -> Collator:
        plain = self._base.base
        return Collator(adapted_processor(plain, spec), positions_of(plain.model))

    def _selected(self, plan: RoundPlan) -> tuple[tuple[int, ...], ...]:
        """Of each patient the records that the plan selects."""
        return selected_records(self._manifest.examples, self._manifest.patients, plan.selection)

    def _batch_for(self, plan: RoundPlan) -> PhysicalBatch:
        """The plan's physical batch, as far as earlier rounds found that it fits."""
        if self._batch is None or self._batch[0] != (plan.physical_batch, plan.lora):
            self._batch = ((plan.physical_batch, plan.lora), PhysicalBatch(plan.physical_batch))
        return self._batch[1]

    def close(self) -> None:
        """Takes the adapter off the base model again."""
        self._base.release()
        self._optimizers.clear()

    def _trained(
        self, plan: RoundPlan, state: Mapping[str, Tensor], init_seed: int
    ) -> tuple[PeftModel, dict[str, nn.Parameter]]:
        """The model with `state` in its adapter, and the tensors that the plan trains."""
        model = self._base.take(plan.lora, init_seed)
        parameters = self._parameters_of(plan, model)
        if plan.privacy.mode == "dp":
            self._prove(plan, model, parameters)
        return self._prepare(plan, state, init_seed), parameters

    def _prove(self, plan: RoundPlan, model: PeftModel, parameters: Mapping[str, nn.Parameter]) -> None:
        """That what the plan trains can be told apart by patient: once for an adapter, before the task's tensors are in it.

        Where memory is short of a batch of two patients, no batch holds them.
        """
        batch = self._batch_for(plan)
        room = PhysicalBatch(1 if batch.size == 1 else RECORDS)
        key = (tuple(parameters), plan.precision, plan.gradient_checkpointing, room.size)
        if key in self._base.proven:
            return
        collator = self._collator(plan.lora)
        model.eval()  # before checkpointing is set, which it would take off again
        set_checkpointing(model.get_base_model(), plan.gradient_checkpointing)
        try:
            room.within_memory(lambda: prove(model, parameters, collator, plan.precision, room.size))
        finally:
            set_checkpointing(model.get_base_model(), on=False)
        if room.size == 1:
            batch.size = 1
        self._base.proven.add((*key[:-1], room.size))

    @staticmethod
    def _parameters_of(plan: RoundPlan, model: PeftModel) -> dict[str, nn.Parameter]:
        parameters = adapter_parameters(model, plan.trainable)
        if not parameters:
            raise ModelError(f"trainable={list(plan.trainable)}: expected kinds such as lora_A or lora_B")
        if plan.parts:
            parameters = {key: own for key, own in parameters.items() if part_of(key) in plan.parts}
        if not parameters:
            raise ModelError(f"parts={list(plan.parts)}: the adapter has no tensor to train in them")
        return parameters

    def _prepare(self, plan: AdapterShape, state: Mapping[str, Tensor], init_seed: int) -> PeftModel:
        model = self._base.take(plan.lora, init_seed)
        reset_adapter(model, init_seed)
        load_adapter_state(model, state)
        if plan.frozen_sha256:
            drawn = {key: value for key, value in adapter_state(model).items() if key not in state}
            frozen = {key: value for key, value in drawn.items() if kind_of(key) not in plan.personal}
            if (found := state_sha256(frozen)) != plan.frozen_sha256:
                raise ModelError(
                    f"adapter tensors drawn here from init_seed have sha256 {found[:12]}, expected "
                    f"{plan.frozen_sha256[:12]}",
                    "install the same FedMed and torch releases on both sides",
                )
        return model

    def _take_optimizer(self, plan: RoundPlan, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The run's optimizer of these tensors with its moments, or a new one. Taken out: a round that fails leaves none."""
        key = self._moments(plan, parameters)
        self._optimizers = {own: kept for own, kept in self._optimizers.items() if own.belongs_with(key)}
        if (optimizer := self._optimizers.pop(key, None)) is None:
            return make_optimizer(plan.optimizer, parameters.values(), plan.noise_std)
        begin_round(optimizer, plan.optimizer, plan.noise_std)
        return optimizer

    def _keep_optimizer(
        self, plan: RoundPlan, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        if plan.optimizer.keep_state:
            self._optimizers[self._moments(plan, parameters)] = optimizer

    def _moments(self, plan: RoundPlan, parameters: Mapping[str, nn.Parameter]) -> _Moments:
        optimizer = replace(plan.optimizer, learning_rate=0.0)
        return _Moments(plan.run, optimizer, plan.lora, tuple(parameters), self._base.changes)


def _lacking(model: PeftModel, state: Mapping[str, Tensor], personal: Sequence[str]) -> list[str]:
    """Keys of the adapter's tensors that are neither in `state` nor a site's own."""
    return [key for key in adapter_parameters(model) if key not in state and kind_of(key) not in personal]


class _Moments(NamedTuple):
    """What moments belong to. Not the learning rate, which a schedule changes every round."""

    run: str
    optimizer: OptimizerSpec
    lora: LoraSpec
    tensors: tuple[str, ...]
    changes: int

    def belongs_with(self, other: _Moments) -> bool:
        """Whether both are of one run, and of parameters that are still there."""
        return (self.run, self.changes) == (other.run, other.changes)
