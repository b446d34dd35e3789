"""One gradient per patient, through Opacus' per-sample hooks. In: a batch and who owns each example; out: [P, ...].

    >>> engine = PatientGradients(model, parameters, "float32")
    >>> owner, weight = torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.5, 1.0])
    >>> gradients = engine.collect(batch, owner, weight, num_patients=2)   # float32 [2, ...] each
    >>> engine.close()

Shapes: B examples, R rows of the vision tower's leading axis (images, sub-images or patches), P patients.

A language layer sees [B, ...], so its n-th gradient is of the n-th example. A layer of the vision tower or projector
sees [R, ...]: its n-th gradient is of a row, and `Batch.image_owner` says of which example. Both are summed by patient
before anything is clipped. The loss of an example is divided by the number of the patient's drawn records, so that the
sum is the gradient of the patient's mean loss.

| case                                                    | result                                                        |
| ------------------------------------------------------- | ------------------------------------------------------------- |
| batch without images                                    | zero gradients of the vision side                             |
| layer that the loss does not reach                      | zero gradient                                                 |
| leading axis is neither examples nor rows               | PrivacyError naming the tensor                                |
| layer reached by the loss, but not seen by a hook       | PrivacyError naming the tensor                                |
| first use: per-sample   gradients do not sum to autograd's | PrivacyError naming the tensor                             |
| afterwards                                              | no per-sample and no raw gradient is left on the model        |
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from opacus.grad_sample import GradSampleHooks
from torch import Tensor, nn

from fedmed.data.collate import IGNORE, Batch
from fedmed.errors import PrivacyError
from fedmed.models.adapter import part_of

# How far the sum of per-sample gradients may lie from autograd's own, relative: autocast rounds to 8 bits.
_AGREEMENT = {"float32": 1e-3, "bfloat16": 5e-2}


def example_losses(model: nn.Module, batch: Batch, precision: str) -> Tensor:
    """Mean cross-entropy over each example's answer tokens: [B]. `precision` bfloat16 runs the model in autocast."""
    targets = batch.labels[:, 1:]
    # Only positions that some example is asked about go through the vocabulary.
    positions = (targets != IGNORE).any(dim=0).nonzero().squeeze(1)
    targets = targets[:, positions]
    with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(**batch.inputs, logits_to_keep=positions, use_cache=False).logits
    losses = nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return losses.sum(dim=1) / (targets != IGNORE).sum(dim=1)


def backward(loss: Tensor) -> None:
    """Gradients of `loss`, where it has any: adapters of the vision side do not meet a batch without images."""
    if loss.requires_grad:
        loss.backward()


class PatientGradients:
    """Hooks on the trainable adapter layers; `collect` after `collect`, then `close`.

    Args:
        model: with its adapter, in eval mode (no dropout).
        parameters: the trainable tensors by stable key; `collect` answers in this order.
        precision: float32 or bfloat16, see `example_losses`.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], precision: str) -> None:
        self._model = model
        self._parameters = parameters
        self._precision = precision
        self._checked: set[str] = set()
        trainable = {id(parameter) for parameter in parameters.values()}
        self._layers = [
            module
            for module in model.modules()
            if any(id(own) in trainable for own in module.parameters(recurse=False))
        ]
        for layer in self._layers:  # the hooks look at layers in training mode alone
            layer.train()
        self._hooks = GradSampleHooks(model, loss_reduction="sum")

    @property
    def sizes(self) -> list[int]:
        """Numbers in each trainable tensor, in the order of `collect`'s columns."""
        return [parameter.numel() for parameter in self._parameters.values()]

    def collect(self, batch: Batch, owner: Tensor, weight: Tensor, num_patients: int) -> Tensor:
        """Gradients of each patient's share of the loss, sum of weight * loss over its examples: float32 [P, n].

        Args:
            batch: on the model's device.
            owner: patient of each example [B], in 0..num_patients-1.
            weight: factor of each example's loss [B].
            num_patients: P.

        Raises:
            PrivacyError: as the table above says.
        """
        try:
            losses = example_losses(self._model, batch, self._precision)
            with warnings.catch_warnings():
                # The first adapted layer's input needs no gradient, which is as it should be.
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                backward((losses * weight).sum())
            rows = owner[batch.image_owner]
            parts = [self._of_patients(key, own, owner, rows, num_patients) for key, own in self._parameters.items()]
            return torch.cat([part.flatten(1) for part in parts], dim=1)
        finally:
            self._free()

    def close(self) -> None:
        """Takes the hooks and everything they left off the model."""
        self._free()
        self._hooks.cleanup()
        for layer in self._layers:
            layer.eval()

    def _of_patients(self, key: str, parameter: nn.Parameter, owner: Tensor, rows: Tensor, count: int) -> Tensor:
        sampled: Tensor | None = getattr(parameter, "grad_sample", None)
        if sampled is None:
            if parameter.grad is not None:
                raise PrivacyError(f"adapter tensor {key}: its gradient cannot be told apart by patient", _HINT)
            return torch.zeros((count, *parameter.shape), dtype=torch.float32, device=parameter.device)
        if key not in self._checked:
            self._check_sum(key, parameter, sampled)
        samples = owner if part_of(key) == "language_model" else _owner_of_rows(key, rows, sampled.shape[0])
        if samples.numel() != sampled.shape[0]:
            raise PrivacyError(f"adapter tensor {key}: {sampled.shape[0]} gradients, {samples.numel()} samples", _HINT)
        return sum_by_owner(sampled, samples, count)

    def _check_sum(self, key: str, parameter: nn.Parameter, sampled: Tensor) -> None:
        """That nothing of the gradient is missing in its parts: a hook that saw half of the calls would show here."""
        whole = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        difference = torch.linalg.vector_norm(sampled.float().sum(dim=0) - whole)
        scale = torch.linalg.vector_norm(sampled.float().flatten(1), dim=1).sum()
        self._checked.add(key)
        if bool(scale.isfinite()) and not bool(difference <= _AGREEMENT[self._precision] * scale):
            raise PrivacyError(f"adapter tensor {key}: per-sample gradients do not add up to the gradient", _HINT)

    def _free(self) -> None:
        """Drops gradients, and the activations of layers that the loss did not reach, which Opacus would keep."""
        for parameter in self._parameters.values():
            parameter.grad = None
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter._forward_counter = 0  # type: ignore[attr-defined]
        for layer in self._layers:
            layer.__dict__.pop("activations", None)
            layer.__dict__.pop("max_batch_len", None)


_HINT = "leave this part or layer out of lora.parts or lora.targets, or take mode none where the policy allows it"


def _owner_of_rows(key: str, rows: Tensor, samples: int) -> Tensor:
    """Owner per sample of a vision-side layer, which may see groups of neighbouring rows as one (patch merging)."""
    if samples == 0 or rows.numel() % samples:
        raise PrivacyError(f"adapter tensor {key}: {samples} gradients do not divide {rows.numel()} image rows", _HINT)
    grouped = rows.reshape(samples, -1)
    if not bool((grouped == grouped[:, :1]).all()):
        raise PrivacyError(f"adapter tensor {key}: one gradient mixes images of several patients", _HINT)
    return grouped[:, 0]


def sum_by_owner(gradient: Tensor, owner: Tensor, num_owners: int) -> Tensor:
    """Gradients [N, ...] summed over each owner's samples: float32 [num_owners, ...]. `owner`: [N], in 0..num_owners-1."""
    total = torch.zeros((num_owners, *gradient.shape[1:]), dtype=torch.float32, device=gradient.device)
    return total.index_add_(0, owner, gradient.float())
