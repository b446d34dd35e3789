"""One training step, six ways: without privacy, with FedMed's per-patient gradients, and with Opacus' three.

Each mode is a context that readies the model and gives the step to call: forward, backward, clip, noise, AdamW. `none` is PEFT
as it is. All see the same model, batch and loss; with one record a patient, per-example and per-patient are the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

from benchmarks.dp_shapes import Case
from fedmed.messages import PrivacySpec
from fedmed.privacy.mechanism import Mechanism
from fedmed.privacy.random import SecureRandom
from fedmed.training.patient_gradients import PatientGradients, example_losses

BOUND, NOISE = 1.0, 1.0
Step = Callable[[], None]
Mode = Callable[[Case], AbstractContextManager[Step]]


def _adamw(case: Case) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(case.parameters.values()), lr=1e-4)


@contextmanager
def none(case: Case) -> Iterator[Step]:
    """The mean loss, and nothing of privacy."""
    optimizer = _adamw(case)
    case.model.eval()

    def step() -> None:
        example_losses(case.model, case.batch, case.precision).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    yield step


@contextmanager
def fedmed(case: Case) -> Iterator[Step]:
    """The site's own step: the parts of fedmed.training.steps for one physical batch."""
    optimizer, random, mechanism = _adamw(case), SecureRandom(), Mechanism()
    spec = PrivacySpec("dp", NOISE, 0.1, BOUND, 1, 1, 1e-5)
    case.model.eval()
    parameters = case.parameters
    engine = PatientGradients(case.model, parameters, case.precision)
    owner = torch.arange(case.patients, device=case.batch.labels.device)
    weight = torch.ones(case.patients, device=owner.device)

    def step() -> None:
        total = mechanism.clip(engine.collect(case.batch, owner, weight, case.patients), engine.sizes, spec)
        noisy = mechanism.noise(total, spec, random) / case.patients
        for part, own in zip(noisy.split(engine.sizes), parameters.values(), strict=True):
            own.grad = part.view_as(own)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    yield step
    engine.close()


def _per_sample(functorch: bool) -> Mode:
    @contextmanager
    def mode(case: Case) -> Iterator[Step]:
        case.model.train()  # Opacus' hooks look at layers in training mode alone; there is no dropout
        wrapped = GradSampleModule(case.model, strict=False, loss_reduction="mean", force_functorch=functorch)
        optimizer = DPOptimizer(
            _adamw(case), noise_multiplier=NOISE, max_grad_norm=BOUND, expected_batch_size=case.patients
        )

        def step() -> None:
            example_losses(wrapped, case.batch, case.precision).mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        yield step
        _strip(case, wrapped)

    return mode


@contextmanager
def opacus_ghost(case: Case) -> Iterator[Step]:
    """Ghost clipping: norms in a first backward pass, the clipped sum in a second."""
    case.model.train()
    wrapped = GradSampleModuleFastGradientClipping(
        case.model, strict=False, loss_reduction="mean", max_grad_norm=BOUND, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        _adamw(case), noise_multiplier=NOISE, max_grad_norm=BOUND, expected_batch_size=case.patients
    )

    def step() -> None:
        losses = example_losses(wrapped, case.batch, case.precision)
        DPTensorFastGradientClipping(wrapped, optimizer, losses, loss_reduction="mean").backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    yield step
    _strip(case, wrapped)


def _strip(case: Case, wrapped: GradSampleModule) -> None:
    """Takes Opacus off the model again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped._close()
    for parameter in case.model.parameters():
        parameter.grad = None
        for name in ("grad_sample", "_norm_sample", "_forward_counter", "summed_grad"):
            parameter.__dict__.pop(name, None)
    case.model.eval()


MODES: dict[str, Mode] = {
    "none": none,
    "fedmed": fedmed,
    "opacus_hooks": _per_sample(functorch=False),
    "opacus_functorch": _per_sample(functorch=True),
    "opacus_ghost": opacus_ghost,
}
