"""The steps of one round. In: drawn patients' records; out: the adapter, moved. What a step guarantees: see LocalTrainer.

draw patients -> draw records -> physical batches -> gradient per patient -> clip, sum -> noise -> / lot
-> + mu (w - w0), with FedProx -> optimizer
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from fedmed.data.difficulty import HARDEST
from fedmed.errors import FederationError, ModelError, PrivacyError
from fedmed.messages import LoraSpec, OptimizerSpec, PrivacySpec, Selection
from fedmed.privacy.mechanism import Mechanism
from fedmed.privacy.random import RandomSource
from fedmed.privacy.sampling import draw_records
from fedmed.training.batches import EncodedExamples, Group, chunks, pack
from fedmed.training.device_memory import PhysicalBatch, kept_bytes, set_checkpointing
from fedmed.training.optimizers import OPTIMIZERS
from fedmed.training.patient_gradients import PatientGradients, backward, example_losses
from fedmed.training.selection import LOSS_BATCH, easy_by_loss, require_selection

log = logging.getLogger("fedmed.training")


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What a round does.

    Attributes:
        lora, privacy, optimizer: as the task says; the site's policy has allowed them.
        trainable: kinds of the adapter tensors to train, such as ("lora_A", "lora_B").
        personal: those of them that are the site's own: they come from its last round or, in the first, from the seed.
        precision: float32, or bfloat16: autocast of the frozen model.
        physical_batch: records in one forward pass, 0 chooses by memory; changes time and memory alone.
        lot_size: expected patients a step: sample_rate * RELEASED number of patients.
        run: moments are kept from round to round of one run only.
        frozen_sha256: `state_sha256` of the adapter tensors that do not come in with the state; "" takes any.
        gradient_checkpointing: layers are run twice and keep less; changes time and memory alone.
        parts: parts of the model whose tensors are trained; empty trains all. selection: of the records.
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
    personal: tuple[str, ...] = ()
    gradient_checkpointing: bool = False
    parts: tuple[str, ...] = ()
    selection: Selection = Selection()  # noqa: RUF009  frozen

    def __post_init__(self) -> None:
        if self.privacy.mode not in ("dp", "none"):
            raise PrivacyError(f"privacy mode={self.privacy.mode!r}: expected dp or none")
        if not self.lot_size > 0:
            raise PrivacyError(f"lot_size={self.lot_size}: expected > 0", "sample_rate and the patient count set it")
        if self.physical_batch < 0:
            raise ModelError(f"physical_batch={self.physical_batch}: expected >= 0")
        if self.precision not in ("float32", "bfloat16"):
            raise ModelError(f"precision={self.precision!r}: expected float32 or bfloat16")
        if self.optimizer.name not in OPTIMIZERS:
            raise ModelError(f"optimizer={self.optimizer.name!r}: expected one of {', '.join(OPTIMIZERS)}")
        require_selection(self.selection, self.privacy)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise in each element of the gradient that the optimizer sees."""
        if self.privacy.mode == "none":
            return 0.0
        return self.privacy.noise_multiplier * self.privacy.max_grad_norm / self.lot_size


@dataclass(frozen=True)
class Steps:
    """The steps of one round. `patients`: of each patient the indices of the records that the plan selects, which may be none;
    the rest as in `LocalTrainer` and `PatientGradients`."""

    plan: RoundPlan
    model: PeftModel
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    examples: EncodedExamples
    patients: Sequence[Sequence[int]]
    random: RandomSource
    should_stop: Callable[[], bool]
    mechanism: Mechanism
    batch: PhysicalBatch
    withdrawn: Callable[[], Collection[int]] = frozenset

    def run(self) -> None:
        """All steps; leaves neither hooks nor gradients behind."""
        private = self.plan.privacy.mode == "dp"
        self.model.eval()
        set_checkpointing(self.model.get_base_model(), self.plan.gradient_checkpointing)
        engine = PatientGradients(self.model, self.parameters, self.plan.precision) if private else None
        pulls = self.plan.optimizer.proximal_mu > 0
        start = [parameter.detach().clone() for parameter in self.parameters.values()] if pulls else []
        try:
            for step in range(self.plan.privacy.steps):
                drawn = self._draw()
                if drawn and not self.batch.size:
                    self._choose_batch(drawn[0][0])
                gradients = self._private_gradient(engine, drawn) if engine else self._mean_gradient(drawn)
                self._apply(self._pull(gradients, start) if pulls else gradients, check=step == 0)
        finally:
            if engine:
                engine.close()
            set_checkpointing(self.model.get_base_model(), on=False)
            self.optimizer.zero_grad(set_to_none=True)

    def _draw(self) -> list[list[int]]:
        """Records of each drawn patient; patients with texts of similar length stand together, to pad less."""
        privacy = self.plan.privacy
        drawn = self.mechanism.draw(len(self.patients), privacy, self.random)
        withdrawn = self.withdrawn()  # after the draw: whether the others take part does not depend on it
        kept = [index for index in drawn if index not in withdrawn]
        offered = self._easy_enough([list(self.patients[index]) for index in kept if self.patients[index]])
        records = [draw_records(own, privacy.records_per_patient, self.random) for own in offered]
        fitting = self.examples.fitting(records, self._stop_if_asked)
        return sorted(fitting, key=lambda own: max(self.examples.text_size(record) for record in own))

    def _easy_enough(self, patients: list[list[int]]) -> list[list[int]]:
        """Patients' records that the selection lets through by the present model's loss, of those who have any."""
        selection = self.plan.selection
        if selection.grading != "loss" or selection.max_difficulty == HARDEST or not patients:
            return patients
        left = [self._easy_of(own) for own in self.examples.fitting(patients, self._stop_if_asked)]
        return [own for own in left if own]

    def _easy_of(self, records: list[int]) -> list[int]:
        """Of one patient's records, alone in their batches: beside others' a loss is rounded in another way, and one at the
        edge of a grade would come or go with who else was drawn."""
        size, easy = self.batch.size or LOSS_BATCH, set[int]()
        for start in range(0, len(records), size):
            self._stop_if_asked()
            part = records[start : start + size]
            batch = self.examples.batch(part).to(self._device)
            easy |= easy_by_loss(self.model, batch, self.plan.precision, part, self.plan.selection.max_difficulty)
        return [record for record in records if record in easy]

    def _private_gradient(self, engine: PatientGradients, drawn: list[list[int]]) -> list[Tensor]:
        """Clipped, summed over all physical batches, noised once, divided by the public lot size."""
        total = self.batch.within_memory(lambda: self._clipped_sum(engine, drawn))
        noisy = self.mechanism.noise(total, self.plan.privacy, self.random) / self.plan.lot_size
        parts = noisy.split(engine.sizes)
        return [part.view_as(own) for part, own in zip(parts, self.parameters.values(), strict=True)]

    def _clipped_sum(self, engine: PatientGradients, drawn: list[list[int]]) -> Tensor:
        """Over all drawn patients: [n]."""
        total = torch.zeros(sum(engine.sizes), device=self._device)
        for group in pack(drawn, self.batch.size):
            total += self.mechanism.clip(self._group_gradients(engine, group), engine.sizes, self.plan.privacy)
        return total

    def _group_gradients(self, engine: PatientGradients, group: Group) -> Tensor:
        """Gradient of every patient of the group [P, n], added up over its chunks."""
        total: Tensor | None = None
        for chunk in chunks(group, self.batch.size):
            self._stop_if_asked()
            batch = self.examples.batch(chunk.records).to(self._device)
            owner, weight = chunk.owner.to(self._device), chunk.weight.to(self._device)
            total = engine.collect(batch, owner, weight, len(group.patients), total)
        assert total is not None, "a group holds at least one record"  # noqa: S101
        return total

    def _mean_gradient(self, drawn: list[list[int]]) -> list[Tensor]:
        """Mode none: the plain mean over the drawn patients; [] when nobody was drawn."""
        return self.batch.within_memory(lambda: self._mean_of(drawn)) if drawn else []

    def _mean_of(self, drawn: list[list[int]]) -> list[Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        for group in pack(drawn, self.batch.size):
            for chunk in chunks(group, self.batch.size):
                self._stop_if_asked()
                batch = self.examples.batch(chunk.records).to(self._device)
                losses = example_losses(self.model, batch, self.plan.precision)
                backward((losses * chunk.weight.to(self._device)).sum() / len(drawn))
        return [_gradient(parameter) for parameter in self.parameters.values()]

    def _pull(self, gradients: list[Tensor], start: list[Tensor]) -> list[Tensor]:
        """FedProx (Li et al., arXiv 1812.06127): the gradient of mu / 2 |w - w0|^2 on top, w0 being the round's start.

        After the noise: the pull is a function of noisy sums and of what came in, so it needs neither clipping nor noise.
        """
        mu = self.plan.optimizer.proximal_mu
        pulled = zip(gradients, self.parameters.values(), start, strict=False)  # [] when nobody was drawn
        return [gradient + mu * (own.detach() - first) for gradient, own, first in pulled]

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

    def _choose_batch(self, record: int) -> None:
        """The physical batch by memory; measured without checkpointing, which errs on the safe side."""
        batch = self.examples.batch([record]).to(self._device)
        base = self.model.get_base_model()
        set_checkpointing(base, on=False)
        kept = kept_bytes(lambda: example_losses(self.model, batch, self.plan.precision), self.model)
        set_checkpointing(base, self.plan.gradient_checkpointing)
        rows = sum(4 * parameter.numel() for parameter in self.parameters.values())
        self.batch.choose(kept + rows, self._device)
        log.info("physical batch %d: a record keeps %.1f MB", self.batch.size, (kept + rows) / 1e6)

    @property
    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _stop_if_asked(self) -> None:
        if self.should_stop():
            raise FederationError("the round was stopped before its last step", "what it had reserved stays spent")


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
