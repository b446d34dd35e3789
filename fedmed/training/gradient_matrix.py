"""The gradient matrix while a backward pass fills it: a row a patient, a column a number of the adapter.

    left [N, a], right [N, b], segments of N by patient -> row p += left_p^T right_p

Shapes: P patients, n numbers of the adapter (all trainable tensors, flattened and joined), N positions of an activation.
Everything is added in float32, whatever the precision of the pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedmed.training.ownership import Owners, Segments


@dataclass
class Matrix:
    """The gradient matrix [P, n] of one batch while the backward pass fills it. `columns`: of each parameter, by id."""

    columns: dict[int, slice]
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    owners: Owners | None = None

    def wants(self, parameter: Tensor) -> bool:
        """Whether the parameter is trained."""
        return id(parameter) in self.columns

    def add_products(self, parameter: Tensor, left: Tensor, right: Tensor, segments: Segments) -> None:
        """For each patient: left_p^T right_p [a, b], from left [N, a] and right [N, b], into the parameter's columns."""
        part = self.values[:, self.columns[id(parameter)]]
        shape = (left.shape[1], right.shape[1])
        if segments.uniform:
            count = len(segments.lengths)
            product = torch.bmm(left.unflatten(0, (count, -1)).transpose(1, 2), right.unflatten(0, (count, -1)))
            part.unflatten(1, shape).add_(product)
            return
        pieces = zip(left.split(segments.lengths), right.split(segments.lengths), part, strict=True)
        for own_left, own_right, row in pieces:
            if len(own_left):
                row.view(shape).add_(own_left.T @ own_right)

    def add_rows(self, parameter: Tensor, values: Tensor, ids: Tensor, segments: Segments, axis: int) -> None:
        """For each patient: values [N, a] added at ids [N] along the parameter's `axis`."""
        part = self.values[:, self.columns[id(parameter)]]
        pieces = zip(values.split(segments.lengths), ids.split(segments.lengths), part, strict=True)
        for own, own_ids, row in pieces:
            row.view_as(parameter).index_add_(axis, own_ids, own if axis == 0 else own.T)

    def add_sums(self, parameter: Tensor, values: Tensor, segments: Segments) -> None:
        """For each patient: the sum of its positions of values [N, a], into the parameter's columns."""
        part = self.values[:, self.columns[id(parameter)]]
        for own, row in zip(values.split(segments.lengths), part, strict=True):
            row.add_(own.float().sum(0))


@dataclass(frozen=True)
class Layer:
    """A layer as the taps know it: the module, its path in the model, its part (see `Owners`), the matrix to fill."""

    module: nn.Module
    name: str
    part: str | None
    matrix: Matrix

    def segments(self, activation: Tensor, axes: int = 1) -> Segments:
        """Of an activation whose last `axes` axes are not positions."""
        assert self.matrix.owners is not None, "taps only fire inside collect"  # noqa: S101
        positions = activation.shape[: activation.dim() - axes].numel()
        return self.matrix.owners.segments(self.part, activation.shape[0], positions, self.name)
