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
        # One product for all patients with equally many records: of one each, a GPU would wait longer for the starts than
        # it computes.
        for patients, positions in segments.runs:
            rows = part[patients].unflatten(1, shape)
            own_left, own_right = (side[positions].unflatten(0, (len(rows), -1)) for side in (left, right))
            rows.add_(torch.bmm(own_left.transpose(1, 2), own_right))

    def add_rows(self, parameter: Tensor, values: Tensor, ids: Tensor, segments: Segments, axis: int) -> None:
        """For each patient: values [N, a] added at ids [N] along the parameter's `axis`."""
        part = self.values[:, self.columns[id(parameter)]]
        pieces = zip(values.split(segments.lengths), ids.split(segments.lengths), part, strict=True)
        for own, own_ids, row in pieces:
            row.view_as(parameter).index_add_(axis, own_ids, own if axis == 0 else own.T)

    def add_sums(self, parameter: Tensor, values: Tensor, segments: Segments) -> None:
        """For each patient: the sum of its positions of values [N, a], into the parameter's columns."""
        part = self.values[:, self.columns[id(parameter)]]
        for patients, positions in segments.runs:
            rows = part[patients]
            rows.add_(values[positions].unflatten(0, (len(rows), -1)).float().sum(1))


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
