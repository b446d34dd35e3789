"""Clipping: one patient moves the sum by at most the bound, over rules, dtypes, norms, shapes and faults."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from helpers_device import DEVICE

from fedmed.errors import PrivacyError
from fedmed.privacy.clipping import RULES, clip_and_sum

SIZES = [(1,), (17,), (4, 12, 1), (4096,), (4095, 2), (3000, 5000, 1000)]
LOW = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _tensors_on_the_device() -> Iterator[None]:
    with DEVICE:
        yield


def norm(value: torch.Tensor) -> float:
    return float(value.double().norm())


def patients_of(count: int, size: int, scale: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(count + size)
    drawn = torch.randn(count, size, generator=generator, dtype=torch.float64, device="cpu")
    return (drawn * scale).to(DEVICE, dtype)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-3, 1.0, 1e3, 1e12])
@pytest.mark.parametrize("bound", [1e-3, 1.0, 50.0])
def test_one_patient_moves_the_sum_by_at_most_the_bound(
    rule: str, dtype: torch.dtype, scale: float, bound: float
) -> None:
    for sizes in SIZES:
        patients = patients_of(3, sum(sizes), scale, dtype)
        whole = clip_and_sum(patients, bound, rule, sizes)
        for left_out in range(3):
            rest = clip_and_sum(patients[[index for index in range(3) if index != left_out]], bound, rule, sizes)
            rounding = 1e-6 * (norm(whole) + norm(rest))
            assert norm(whole.double() - rest.double()) <= bound + rounding
            assert norm(clip_and_sum(patients[left_out : left_out + 1], bound, rule, sizes)) <= bound


@pytest.mark.parametrize("rule", RULES)
def test_the_bound_holds_where_a_plain_float32_norm_is_off(rule: str) -> None:
    """A norm added up in float32 over so many numbers is too small by more than the slack."""
    large = torch.full((1, 3_000_000), 0.37)
    assert norm(clip_and_sum(large, 1.0, rule, [1_000_000, 2_000_000])) <= 1.0


def test_flat_passes_small_gradients_unchanged_and_keeps_the_direction_of_large_ones() -> None:
    small, large = torch.tensor([[0.3, 0.4]]), torch.tensor([[30.0, 40.0]])
    assert torch.equal(clip_and_sum(small, 1.0), small[0])
    assert torch.allclose(clip_and_sum(large, 1.0), torch.tensor([0.6, 0.8]), rtol=2e-6)


def test_automatic_brings_every_gradient_near_the_bound_and_none_to_it() -> None:
    """C / (|g| + 0.01): a gradient of norm 0.01 gets half of the bound, larger ones nearly all."""
    for size, expected in [(0.0, 0.0), (0.01, 0.5), (1.0, 1 / 1.01), (1e6, 1.0)]:
        found = norm(clip_and_sum(torch.tensor([[0.6 * size, 0.8 * size]]), 2.0, "automatic"))
        assert found == pytest.approx(2.0 * expected, rel=1e-5)
        assert found < 2.0


def test_per_layer_bounds_each_tensor_by_its_share() -> None:
    gradients = torch.tensor([[30.0, 40.0, 0.1, 0.2], [0.1, 0.2, 0.0, -9.0]])
    share = 1 / math.sqrt(2)
    expected = [0.6 * share + 0.1, 0.8 * share + 0.2, 0.1, 0.2 - share]
    assert clip_and_sum(gradients, 1.0, "per_layer", (2, 2)).tolist() == pytest.approx(expected, rel=1e-5)
    one_tensor = clip_and_sum(gradients, 1.0, "per_layer", (4,))
    assert torch.equal(one_tensor, clip_and_sum(gradients, 1.0))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_patient_that_is_not_finite_contributes_nothing(rule: str, bad: float) -> None:
    gradients = torch.tensor([[bad, bad, 1.0], [0.3, 0.4, 0.0]])
    kept = gradients.clone()
    assert torch.equal(clip_and_sum(gradients, 1.0, rule, (2, 1)), clip_and_sum(gradients[1:], 1.0, rule, (2, 1)))
    assert torch.equal(clip_and_sum(gradients[:1], 1.0, rule, (2, 1)), torch.zeros(3))
    assert torch.equal(gradients.nan_to_num(), kept.nan_to_num())  # not in place


@pytest.mark.parametrize("rule", RULES)
def test_no_patients_sum_to_zero(rule: str) -> None:
    assert torch.equal(clip_and_sum(torch.zeros(0, 5000), 1.0, rule, (4999, 1)), torch.zeros(5000))


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_out_of_range_is_refused(bound: float) -> None:
    with pytest.raises(PrivacyError, match="max_grad_norm"):
        clip_and_sum(torch.zeros(1, 2), bound)


def test_an_unknown_rule_and_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PrivacyError, match="clipping='ghost': expected one of flat, automatic, per_layer"):
        clip_and_sum(torch.zeros(1, 2), 1.0, "ghost")
    with pytest.raises(PrivacyError, match="sizes add up to 0, not 2"):
        clip_and_sum(torch.zeros(1, 2), 1.0, "per_layer")
    with pytest.raises(PrivacyError, match="at least one trainable tensor"):
        clip_and_sum(torch.zeros(1, 0), 1.0)
