"""The gradient matrix under a backward pass: each patient's own product, in few operations however many patients."""

from __future__ import annotations

import pytest
import torch
from helpers_device import DEVICE
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedmed.training.batches import pack
from fedmed.training.gradient_matrix import Matrix
from fedmed.training.ownership import Segments

LEFT, RIGHT = 5, 7


class Operations(TorchDispatchMode):
    """Counts what is dispatched: on a GPU each is a kernel at least."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def activation(lengths: list[int], width: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(sum(lengths), width, generator=generator).to(DEVICE, dtype)


def products(lengths: list[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, int]:
    """The matrix after two layers' calls; what a loop over the patients gives in float64; operations of the second call."""
    parameter = nn.Parameter(torch.zeros(LEFT, RIGHT, device=DEVICE))
    matrix = Matrix({id(parameter): slice(2, 2 + LEFT * RIGHT)})
    matrix.values = torch.zeros(len(lengths), LEFT * RIGHT + 3, device=DEVICE)
    segments, left, right = Segments(lengths), activation(lengths, LEFT, dtype), activation(lengths, RIGHT, dtype)
    matrix.add_products(parameter, left, right, segments)
    with Operations() as made:
        matrix.add_products(parameter, left, right, segments)
    pieces = zip(left.double().split(lengths), right.double().split(lengths), strict=True)
    return matrix.values, torch.stack([2 * (one.T @ other).flatten() for one, other in pieces]), made.count


@pytest.mark.parametrize("lengths", [[3, 3], [4, 2, 2, 6], [2, 0, 5, 2], [0, 0]])
def test_each_patient_gets_its_own_sum(lengths: list[int]) -> None:
    parameter = nn.Parameter(torch.zeros(LEFT, device=DEVICE))
    matrix = Matrix({id(parameter): slice(1, 1 + LEFT)})
    matrix.values = torch.zeros(len(lengths), LEFT + 1, device=DEVICE)
    values = activation(lengths, LEFT, torch.bfloat16)
    matrix.add_sums(parameter, values, Segments(lengths))
    expected = torch.stack([own.float().sum(0) for own in values.split(lengths)])
    torch.testing.assert_close(matrix.values[:, 1:], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[3, 3, 3], [4, 2, 4, 6, 2, 4], [2, 0, 5, 2], [0, 0], [9], [0, 1]])
def test_each_patient_gets_its_own_product(lengths: list[int], dtype: torch.dtype) -> None:
    found, expected, _ = products(lengths, dtype)
    close = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(found[:, 2 : 2 + LEFT * RIGHT].double(), expected, rtol=close, atol=close)
    assert not found[:, :2].any() and not found[:, 2 + LEFT * RIGHT :].any()


def test_patients_with_different_numbers_of_records_cost_no_operations_each() -> None:
    """As in a cohort with one to three records a patient: a loop over the patients was 8 times slower on a GPU."""
    drawn = [list(range(count)) for count in (1, 2, 3)]
    counted = []
    for patients in (6, 120):
        (group,) = pack([drawn[index % 3] for index in range(patients)], 240)
        counted.append(products([50 * len(own) for own in group.patients])[2])
    assert counted[0] == counted[1] < 40
