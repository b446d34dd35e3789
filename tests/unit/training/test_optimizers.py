"""The optimizers: AdamBC against its formula, AdamW and pure noise; what a new round changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_training import plan
from torch import nn

from fedmed.errors import ModelError
from fedmed.messages import OptimizerSpec
from fedmed.training.optimizers import OPTIMIZERS, AdamBC, begin_round, make_optimizer

SPEC = OptimizerSpec("adam_bc", 0.03, 0.8, 0.1, True)


def steps(name: str, noise_std: float, gradients: torch.Tensor, decay: float = 0.1) -> torch.Tensor:
    """Where a parameter is after these gradients [steps, n], from a start that is not zero."""
    parameter = nn.Parameter(torch.linspace(-1, 1, gradients.shape[1], dtype=gradients.dtype))
    optimizer = make_optimizer(replace(SPEC, name=name, weight_decay=decay), [parameter], noise_std)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def drawn(count: int, size: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(count), dtype=torch.float64) * scale


def test_adam_bc_follows_its_formula() -> None:
    gradients, noise_std = drawn(20, 50), 0.9
    theta, mean, square = np.linspace(-1, 1, 50), np.zeros(50), np.zeros(50)
    floored = 0
    for step, gradient in enumerate(gradients.numpy(), start=1):
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        corrected = square / (1 - 0.999**step) - noise_std**2
        floored += int((corrected < 0.3 * noise_std**2).sum())
        root = np.sqrt(np.maximum(corrected, 0.3 * noise_std**2)) + 1e-8
        theta = theta - 0.03 * 0.1 * theta - 0.03 * (mean / (1 - 0.8**step)) / root
    assert 0 < floored < gradients.numel()  # both sides of the maximum were taken
    np.testing.assert_allclose(steps("adam_bc", noise_std, gradients).numpy(), theta, rtol=1e-10)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_without_noise_adam_bc_is_adamw(decay: float, scale: float) -> None:
    gradients = drawn(10, 30, scale)
    expected = steps("adamw", 0.0, gradients, decay)
    torch.testing.assert_close(steps("adam_bc", 0.0, gradients, decay), expected, rtol=1e-10, atol=1e-12)


def test_on_noise_alone_its_second_moment_is_nearly_unbiased() -> None:
    """AdamW would divide by the noise's own deviation; what AdamBC keeps of it is a sampling error around 0."""
    noise_std, count, size = 0.02, 100, 20_000
    parameter = nn.Parameter(torch.zeros(size, dtype=torch.float64))
    optimizer = AdamBC([parameter], 1e-3, (0.9, 0.999), 0.0, noise_std)
    for gradient in drawn(count, size, noise_std):
        parameter.grad = gradient
        optimizer.step()
    moment = optimizer.state[parameter]["square"] / (1 - 0.999**count) / noise_std**2  # in units of Phi
    assert float(moment.mean()) == pytest.approx(1.0, abs=0.01)
    assert float((moment - 1).square().mean().sqrt()) == pytest.approx((2 / count) ** 0.5, rel=0.05)


def test_a_signal_below_the_noise_moves_as_far_as_the_floor_allows() -> None:
    """Against AdamW, whose step shrinks by the noise: longer, and at most 2.1 times."""
    gradients = drawn(200, 500, 0.1) + 0.01
    private = steps("adam_bc", 0.1, gradients, 0.0)
    plain = steps("adamw", 0.0, gradients, 0.0)
    start = torch.linspace(-1, 1, 500, dtype=torch.float64)
    ratio = float((private - start).norm() / (plain - start).norm())
    assert 1.2 < ratio < 2.1


def test_parameters_without_gradient_stay() -> None:
    moved, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(SPEC, [moved, still], 0.1)
    moved.grad = torch.ones(2)
    optimizer.step()
    assert still.tolist() == [1.0, 1.0]
    assert moved.tolist() != [1.0, 1.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_new_round_takes_its_rate_and_keeps_the_moments(name: str) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = make_optimizer(replace(SPEC, name=name), [parameter], 0.0)
    parameter.grad = torch.ones(3)
    optimizer.step()
    kept = {key: torch.as_tensor(value).clone() for key, value in optimizer.state[parameter].items()}
    begin_round(optimizer, replace(SPEC, name=name, learning_rate=0.5), 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0].get("noise_std", 0.25) == 0.25
    assert kept
    assert all(torch.equal(torch.as_tensor(optimizer.state[parameter][key]), value) for key, value in kept.items())


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ModelError, match="optimizer='lion': expected one of adamw, sgd, adam_bc"):
        make_optimizer(replace(SPEC, name="lion"), [nn.Parameter(torch.zeros(1))], 0.0)


def test_a_plan_knows_the_noise_of_its_gradient() -> None:
    assert plan(noise=2.0, bound=0.5, lot=4.0).noise_std == 0.25
    assert plan("none", noise=2.0).noise_std == 0.0
