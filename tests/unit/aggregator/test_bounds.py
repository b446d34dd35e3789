"""How long an update is, and how long it may be: against dense float64 matrices, and against real optimizers."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from aggregator.aggregation.bounds import Start, adam_steps, median_bound, reach_bound
from aggregator.aggregation.layers import layers, write_factors
from aggregator.aggregation.mean import select
from aggregator.aggregation.products import Change, measure_change, squared_distance
from aggregator.aggregation.reference import distance, weight_changes
from aggregator.aggregation.run import Aggregation
from aggregator.methods import METHODS, get_method
from fedmed.experiment import Stage
from fedmed.messages import LoraSpec, OptimizerSpec, PrivacySpec, TrainTask
from fedmed.models.kinds import kind_of
from fedmed.training.optimizers import make_optimizer
from tests.helpers_adapters import adapter, experiment_of, moved

SCALE = 1.5
NONE = PrivacySpec("none", 0.0, 0.1, 1.0, 4, 10, 1e-5)
DP = dataclasses.replace(NONE, mode="dp", noise_multiplier=0.8)


def start_of(name):
    return adapter(0, core=METHODS[name].core)


def task_of(optimizer, privacy, *, number=1, dtype="float32"):
    lora = LoraSpec(4, 6.0, ("projector",), ("all-linear",))
    return TrainTask(
        "r",
        number,
        9,
        "",
        "",
        "",
        "fedavg",
        lora,
        0,
        "",
        ("lora_A",),
        ("lora_A",),
        privacy,
        optimizer,
        dtype,
        "float32",
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("part", [1.0, 0.3, 1e-6])
def test_the_norm_is_that_of_the_dense_change_at_every_part_of_the_way(name, part):
    method, sent = get_method(name), start_of(name)
    for number in (1, 2):
        update = moved(sent, method.returned(number), 3)
        there = {key: sent[key].double().lerp(update[key].double(), part) for key in update}
        dense = distance(weight_changes(sent, SCALE), weight_changes({**sent, **there}, SCALE)) ** 2
        alone = method.mixed_ranks
        counted = [key for key in update if not alone or key == "model.head.bias"]
        dense += sum(float((there[key] - sent[key].double()).square().sum()) for key in counted)
        change = measure_change(sent, update, SCALE, product_alone=alone)
        assert change.norm(part) == pytest.approx(math.sqrt(dense), rel=2e-6)


def with_other_basis(state, seed=7):
    """The same products with A -> G A, B -> B G^-1."""
    result = dict(state)
    for layer in layers(state):
        turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        mix = turn * torch.tensor(
            [0.25, 0.5, 2.0, 4.0], dtype=torch.float64
        )  # condition 16: float32 factors stay precise
        down, up = state[layer.a].flatten(1).double(), state[layer.b].flatten(1).double()
        write_factors(result, layer, up @ torch.linalg.inv(mix), mix @ down)
    return result


@pytest.mark.parametrize("name", ["flexlora", "flora"])
def test_where_the_product_alone_counts_a_change_of_basis_changes_no_length(name):
    sent = adapter(0)
    update = moved(sent, get_method(name).returned(1), 3)
    plain = measure_change(sent, update, SCALE, product_alone=True).norm()
    assert measure_change(sent, with_other_basis(update), SCALE, product_alone=True).norm() == pytest.approx(
        plain, rel=1e-5
    )
    assert squared_distance(update, with_other_basis(update), SCALE, product_alone=True) < 1e-8 * plain**2


def test_where_numbers_are_averaged_one_factor_cannot_hide_behind_the_other():
    sent = adapter(0)
    for layer in layers(sent):
        sent[layer.b].zero_()
    update = {key: tensor * (1e20 if key.endswith(("_A", "A.weight")) else 1) for key, tensor in sent.items()}
    assert measure_change(sent, update, SCALE, product_alone=True).norm() == 0
    assert measure_change(sent, update, SCALE, product_alone=False).norm() > 1e20


def test_distances_are_those_of_dense_matrices():
    one, other = adapter(1), adapter(2)
    saved = float((one["model.head.bias"].double() - other["model.head.bias"].double()).square().sum())
    dense = distance(weight_changes(one, SCALE), weight_changes(other, SCALE)) ** 2 + saved
    assert squared_distance(one, other, SCALE, product_alone=True) == pytest.approx(dense, rel=1e-9)
    mixed = adapter(3, rank=2)
    saved = float((one["model.head.bias"].double() - mixed["model.head.bias"].double()).square().sum())
    dense = distance(weight_changes(one, SCALE), weight_changes(mixed, SCALE)) ** 2 + saved
    assert squared_distance(one, mixed, SCALE, product_alone=True) == pytest.approx(dense, rel=1e-9)


@pytest.mark.parametrize(
    "change", [Change(4.0), Change(1.0, -1.9, 1.0), Change(1e-8, 3.0, 2.0), Change(0.0, 0.0, 1e60)]
)
@pytest.mark.parametrize("bound", [1e-12, 0.05, 1.9])
def test_the_part_within_a_bound_reaches_it_and_not_beyond(change, bound):
    part = change.part_within(bound)
    assert 0 < part <= 1 and change.norm(part) <= bound
    assert part == 1 or change.norm(part) == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_a_long_update_is_scaled_down_to_the_bound_and_told(name):
    aggregation, sent = Aggregation(experiment_of(name, "federation.norm_bound=2")), start_of(name)
    update = moved(sent, aggregation.method.returned(1), 3, size=1e6)
    current = aggregation.begin(1, sent, {}, [0.1, 0.2, 50.0])
    taken = current.add(update, 1.0, sent)
    assert taken.scaled and taken.bound == pytest.approx(0.4) and taken.norm > 1e5
    after = measure_change(sent, update, SCALE, product_alone=aggregation.method.mixed_ranks)
    # What is left is a difference of float32 numbers of the size of what was sent.
    assert after.norm() == pytest.approx(0.4, rel=1e-4)
    short = moved(sent, aggregation.method.returned(1), 4, size=1e-3)
    kept = {key: tensor.clone() for key, tensor in short.items()}
    assert not current.add(short, 1.0, sent).scaled
    assert all(torch.equal(short[key], kept[key]) for key in kept)


def test_the_largest_numbers_of_float32_are_scaled_down_too():
    aggregation, sent = Aggregation(experiment_of("fedavg")), adapter(0)
    current = aggregation.begin(1, sent, {}, [1.0])
    taken = current.add({key: torch.full_like(tensor, 3e38) for key, tensor in sent.items()}, 1.0, sent)
    assert taken.scaled and math.isfinite(taken.norm)
    after, _ = current.finish()
    update = {key: after[key] for key in sent}
    assert measure_change(sent, update, SCALE, product_alone=False).norm() < 4.1


def test_the_median_of_the_norms_before_sets_the_bound():
    assert median_bound([1.0, 3.0, 1000.0], 4.0) == 12.0
    assert median_bound([], 4.0) == median_bound([0.0, 0.0, 5.0], 4.0) == math.inf


def hostile_gradients(steps, seed):
    """Gradients that make Adam's steps long: rare, large, of one sign, growing."""
    random = torch.Generator().manual_seed(seed)
    return [
        torch.where(torch.rand(50, generator=random) < 0.2, 10.0**step, 1e-6) for step in torch.linspace(0, 3, steps)
    ]


@pytest.mark.parametrize("steps", [1, 10, 200])
@pytest.mark.parametrize("beta1", [0.0, 0.9, 0.99])
def test_no_gradients_move_adam_farther_than_its_reach(steps, beta1):
    spec = OptimizerSpec("adamw", 0.01, beta1, 0.0, True)
    parameter = nn.Parameter(torch.zeros(50))
    optimizer = make_optimizer(spec, [parameter], 0.0)
    for turn in (0, 1):  # with the moments of the first round in the second
        before = parameter.detach().clone()
        for gradient in hostile_gradients(steps, turn):
            parameter.grad = gradient
            optimizer.step()
        far = float((parameter.detach() - before).abs().max())
        assert far <= 0.01 * adam_steps(beta1, steps, turn * steps) * (1 + 1e-5)
    assert adam_steps(beta1, 1) == pytest.approx(1.0)


def test_adams_reach_is_attained_by_the_worst_gradients():
    beta1, beta2, steps = 0.9, 0.999, 60
    ratio = [(beta1 / beta2) ** (steps - 1 - index) for index in range(steps)]  # a_j / b_j: where Cauchy's is equality
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer(OptimizerSpec("adamw", 1.0, beta1, 0.0, True), [parameter], 0.0)
    for gradient in ratio:
        before = parameter.item()
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
    assert abs(parameter.item() - before) == pytest.approx(adam_steps(beta1, 1, steps - 1), rel=1e-3)


@pytest.mark.parametrize("kinds", [("lora_A", "lora_B", "saved"), ("lora_B",), ("lora_A",), ("lora_R", "saved")])
@pytest.mark.parametrize("name", ["adamw", "adam_bc", "sgd"])
@pytest.mark.parametrize("alone", [True, False])
def test_an_honest_site_is_never_over_its_reach(name, kinds, alone):
    """Steps as LocalTrainer takes them: clipped sums, noise, over the lot."""
    patients, privacy = 40, dataclasses.replace(DP, sample_rate=0.5, noise_multiplier=0.05)
    spec = OptimizerSpec(name, 0.05, 0.9, 0.01 if name != "sgd" else 0.0, False)
    sent = adapter(0, core="lora_R" in kinds)
    own = {key: nn.Parameter(tensor.clone()) for key, tensor in select(sent, kinds).items()}
    sizes = [parameter.numel() for parameter in own.values()]
    lot = privacy.sample_rate * patients
    optimizer = make_optimizer(spec, own.values(), privacy.noise_multiplier / lot)
    random = torch.Generator().manual_seed(1)
    for _ in range(privacy.steps):
        pull = torch.ones(sum(sizes)) / math.sqrt(sum(sizes)) * patients  # all drawn, all of one mind, each of length C
        noisy = (pull + privacy.noise_multiplier * torch.randn(sum(sizes), generator=random)) / lot
        for parameter, gradient in zip(own.values(), noisy.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        optimizer.step()
    update = {key: parameter.detach() for key, parameter in own.items()}
    norm = measure_change(sent, update, SCALE, product_alone=alone).norm()
    reach = reach_bound(Start.of(sent, list(update)), task_of(spec, privacy), patients, product_alone=alone)
    assert norm <= reach
    # The reach adds up what the layers' factors could do at the worst; it is of use as long as that is not thousands.
    assert reach < 60 * norm


def test_a_first_round_has_a_bound_where_the_optimizer_gives_one():
    sent = adapter(0)
    update = {key: tensor * 1e6 for key, tensor in sent.items()}

    def reach(optimizer, privacy, patients=1):
        return reach_bound(Start.of(sent, list(update)), task_of(optimizer, privacy), patients, product_alone=False)

    adam, sgd = (OptimizerSpec(name, 0.01, 0.9, 0.0, False) for name in ("adamw", "sgd"))
    assert math.isfinite(reach(adam, NONE)) and math.isfinite(reach(adam, DP)) and math.isfinite(reach(sgd, DP))
    assert reach(sgd, NONE) == math.inf
    assert reach(sgd, DP, patients=0) == math.inf and math.isfinite(reach(adam, DP, patients=0))
    assert reach(dataclasses.replace(sgd, weight_decay=0.1), DP) == math.inf
    assert reach(dataclasses.replace(sgd, proximal_mu=0.1), DP) == math.inf
    assert reach(dataclasses.replace(adam, weight_decay=101.0), NONE) == math.inf
    assert reach(dataclasses.replace(adam, name="adam_bc"), DP) > 1.5 * reach(adam, DP)

    aggregation = Aggregation(experiment_of("fedavg"))
    taken = aggregation.begin(1, sent, {}, []).add(update, 1.0, sent, task_of(adam, NONE))
    assert taken.scaled and taken.norm > 1e6 and taken.bound == pytest.approx(reach(adam, NONE))


def test_the_reach_counts_the_moments_of_a_stage_with_longer_rounds():
    """200 steps of small gradients in a stage's one round, then one of a large one: a projector trained whole, whose reach has
    no slack."""
    sent = select(adapter(0), ("saved",))
    spec = OptimizerSpec("adamw", 0.01, 0.9, 0.0, True)
    experiment = experiment_of("fedavg")
    long, short = (
        dataclasses.replace(experiment.training, rounds=rounds, local_steps=steps)
        for rounds, steps in ((1, 200), (1, 1))
    )
    stages = {name: Stage(training=own, curriculum=experiment.curriculum) for name, own in (("a", long), ("b", short))}
    own = {key: nn.Parameter(tensor.clone()) for key, tensor in sent.items()}
    optimizer = make_optimizer(spec, own.values(), 0.0)
    for gradient in [1e-6] * 200 + [1.0]:
        before = {key: parameter.detach().clone() for key, parameter in own.items()}
        for parameter in own.values():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    update = {key: sent[key] + parameter.detach() - before[key] for key, parameter in own.items()}
    aggregation = Aggregation(dataclasses.replace(experiment, stages=stages))
    privacy = dataclasses.replace(NONE, steps=1)
    taken = aggregation.begin(2, sent, {}, []).add(
        update, 1.0, sent, dataclasses.replace(task_of(spec, privacy), round=2)
    )
    assert math.isfinite(taken.bound) and not taken.scaled


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_reach_leaves_room_for_what_the_wire_rounds_off(dtype):
    still = OptimizerSpec("adamw", 1e-12, 0.9, 0.0, False)
    sent = adapter(0)
    rounded = {
        key: tensor.bfloat16().float()
        if dtype == "bfloat16"
        else (tensor / tensor.abs().max() * 127).round() / 127 * tensor.abs().max()
        if dtype == "int8"
        else tensor
        for key, tensor in sent.items()
    }
    norm = measure_change(sent, rounded, SCALE, product_alone=False).norm()
    assert norm <= reach_bound(Start.of(sent, list(sent)), task_of(still, NONE, dtype=dtype), 1, product_alone=False)


@pytest.mark.parametrize("large", [1e4, 1e6, 1e8, 1e12, 1e15])
def test_no_basis_hides_a_change_where_the_product_alone_counts(large):
    sent = adapter(0)
    update = moved(sent, get_method("flora").returned(1), 3)
    hidden = {
        key: tensor * (large if key.endswith(("_B", "B.weight")) else 1 / large) for key, tensor in update.items()
    }
    hidden |= {key: tensor for key, tensor in update.items() if not kind_of(key).startswith("lora")}
    plain = measure_change(sent, update, SCALE, product_alone=True).norm()
    assert measure_change(sent, hidden, SCALE, product_alone=True).norm() >= plain * (1 - 1e-5)
    assert squared_distance(sent, hidden, SCALE, product_alone=True) >= plain**2 * (1 - 1e-5)
