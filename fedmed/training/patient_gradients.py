"""One gradient per patient in one backward pass. In: a batch and who owns each example; out: the matrix [P, n].

    >>> engine = PatientGradients(model, parameters, "float32")                                    # doctest: +SKIP
    >>> owner, weight = torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.5, 1.0])                     # doctest: +SKIP
    >>> gradients = engine.collect(batch, owner, weight, num_patients=2)   # float32 [2, n]        # doctest: +SKIP
    >>> engine.close()                                                                             # doctest: +SKIP

Shapes: B examples, R rows of the vision tower's leading axis (images, sub-images or patches), P patients, n numbers of
the adapter: all trainable tensors, flattened and joined in the order of `parameters`.

Each adapted layer has a tap (fedmed.training.taps) that cuts its weight gradient into patients by the owner of each
position (fedmed.training.ownership): of the example in the language model, of the image in vision tower and projector.
The loss of an example is weighted with 1 / (drawn records of its patient), so that a patient's row is the gradient of
the patient's mean loss. Nothing is clipped here, and no sum over patients is formed.

| case                                                | result                                                         |
| --------------------------------------------------- | -------------------------------------------------------------- |
| layer whose type has no tap, DoRA, a shared weight  | PrivacyError naming it, before any record is used              |
| leading axis that cannot be told apart by patient   | PrivacyError naming the layer                                  |
| batch without images; layer the loss does not reach | zeros                                                          |
| layer that mixes or reorders examples, or whose     | wrong rows: fedmed.training.proof is asked before, and         |
| weight is used behind the tap's back                | compares rows with autograd's own gradients                    |
| same layer called several times                     | its calls add up                                               |
| gradient checkpointing, autocast                    | as without; numbers are accumulated in float32                 |
| afterwards                                          | `close` leaves neither taps nor gradients on the model         |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn

from fedmed.data.collate import IGNORE, Batch
from fedmed.errors import PrivacyError
from fedmed.models.adapter import stable_key
from fedmed.models.kinds import part_of
from fedmed.training.answers import answer_logits
from fedmed.training.gradient_matrix import Matrix
from fedmed.training.ownership import HINT, Owners
from fedmed.training.taps import Tap, is_lora, tap_for


def example_losses(model: nn.Module, batch: Batch, precision: str) -> Tensor:
    """Mean cross-entropy over each example's answer tokens: [B]. `precision` bfloat16 runs the model in autocast."""
    logits, targets = answer_logits(model, batch, precision)
    losses = nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return losses.sum(dim=1) / (targets != IGNORE).sum(dim=1)


def backward(loss: Tensor) -> None:
    """Gradients of `loss`, where it has any: adapters of the vision side do not meet a batch without images."""
    if loss.requires_grad:
        loss.backward()


class PatientGradients:
    """Taps on the trainable layers; `collect` after `collect`, then `close`.

    Args:
        model: with its adapter, in eval mode (no dropout).
        parameters: the trainable tensors by stable key; the matrix has their columns in this order.
        precision: float32 or bfloat16, see `example_losses`.

    Raises:
        PrivacyError: a trainable tensor's gradient cannot be told apart by patient; names its layer.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], precision: str) -> None:
        self._model = model
        self._parameters = dict(parameters)
        self._precision = precision
        ends = list(accumulate(self.sizes))
        columns = {
            id(own): slice(end - own.numel(), end) for own, end in zip(self._parameters.values(), ends, strict=True)
        }
        self._matrix = Matrix(columns)
        self._taps = list(_find_taps(model, self._parameters, self._matrix))
        # Autograd is not asked for the sums over all patients; this stands in for the weights, so that it comes by.
        self._anchor = torch.zeros((), device=next(iter(self._parameters.values())).device, requires_grad=True)
        self._detach: list[Callable[[], None]] = []
        self._attach()

    @property
    def sizes(self) -> list[int]:
        """Numbers in each trainable tensor, in the order of `collect`'s columns."""
        return [parameter.numel() for parameter in self._parameters.values()]

    def collect(
        self, batch: Batch, owner: Tensor, weight: Tensor, num_patients: int, total: Tensor | None = None
    ) -> Tensor:
        """Gradients of each patient's share of the loss, sum of weight * loss over its examples: float32 [P, n].

        Args:
            batch: on the model's device.
            owner: patient of each example [B], ascending, in 0..num_patients-1.
            weight: factor of each example's loss [B].
            num_patients: P.
            total: a matrix of earlier chunks of the same patients to add to; a new one by default.

        Raises:
            PrivacyError: as the table above says.
        """
        rows = owner[batch.image_owner]
        matrix = self._matrix
        matrix.owners = Owners(owner.tolist(), rows.tolist(), num_patients)
        fresh = torch.zeros((num_patients, sum(self.sizes)), device=self._anchor.device) if total is None else total
        matrix.values = fresh
        try:
            backward((example_losses(self._model, batch, self._precision) * weight).sum())
        finally:
            matrix.values, matrix.owners = torch.zeros(0), None
        return fresh

    def close(self) -> None:
        """Takes the taps off the model."""
        for detach in self._detach:
            detach()
        self._detach.clear()
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
            parameter.grad = None

    def _attach(self) -> None:
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)
        self._detach = [tap.attach(self._anchor) for tap in self._taps]


def _find_taps(model: nn.Module, parameters: Mapping[str, nn.Parameter], matrix: Matrix) -> Iterator[Tap]:
    """A tap for every module that holds some of `parameters`; each parameter in exactly one.

    Raises:
        PrivacyError: a layer type without a tap, or a tensor that two layers share; names the layer.
    """
    uses = Counter(id(own) for _, own in model.named_parameters(remove_duplicate=False))
    for key, own in parameters.items():
        if uses[id(own)] != 1:
            raise PrivacyError(f"adapter tensor {key}: {uses[id(own)]} layers share it, expected one", HINT)
    left = dict(matrix.columns)
    for name, module in model.named_modules():
        covered = _lora_weights(module) if is_lora(module) else list(module.parameters(recurse=False))
        wanted = [id(own) for own in covered if id(own) in left]
        if wanted:
            yield tap_for(module, stable_key(name), part_of(name), matrix)
            for own_id in wanted:
                del left[own_id]


def _lora_weights(module: nn.Module) -> list[nn.Parameter]:
    return [own for name, own in module.named_parameters() if "lora_" in name]
