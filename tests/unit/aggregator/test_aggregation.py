"""The table's methods against float64 references, and the edge cases of the docstring's table."""

import dataclasses
import math

import pytest
import torch

from aggregator.aggregation.mean import check_layout, fold_mean, select
from aggregator.aggregation.reference import mean_products, product_error, products
from aggregator.aggregation.run import Aggregation
from aggregator.methods import METHODS, get_method
from fedmed.config import load_experiment
from fedmed.errors import FederationError

WEIGHTS = (600.0, 17.0, 2300.0, 1.0)


def adapter(seed: int, *, frozen_seed: int | None = None, rank: int = 4) -> dict[str, torch.Tensor]:
    """Two layers; with `frozen_seed`, A is drawn from it, as under FFA-LoRA."""
    random = torch.Generator().manual_seed(seed)
    first = torch.Generator().manual_seed(seed if frozen_seed is None else frozen_seed)
    state = {}
    for layer, (out, inside) in {"model.a": (7, 5), "model.b": (6, 6)}.items():
        state[f"{layer}.lora_A.weight"] = torch.randn(rank, inside, generator=first)
        state[f"{layer}.lora_B.weight"] = torch.randn(out, rank, generator=random)
    return state


def aggregate(name: str, states: list[dict[str, torch.Tensor]], weights: tuple[float, ...]) -> dict[str, torch.Tensor]:
    aggregation = Aggregation(load_experiment("demo", [f"federation.method={name}"]))
    current = aggregation.begin(1, states[0], {}, [])
    for state, weight in zip(states, weights, strict=True):
        current.add(select(state, aggregation.method.returned(1)), weight, states[0])
    return current.finish()[0]


def test_table_lists_what_each_method_sends():
    assert get_method("fedavg").returned(1) == get_method("fedavg").down == ("lora_A", "lora_B", "saved")
    assert get_method("ffa_lora").returned(7) == get_method("ffa_lora").down == ("lora_B", "saved")
    assert all(name == method.name and method.paper for name, method in METHODS.items())


def test_unknown_method_is_named_with_the_known_ones():
    with pytest.raises(FederationError, match=r"'fedavg2'.*fedavg, ffa_lora"):
        get_method("fedavg2")


@pytest.mark.parametrize("name", ["fedavg", "ffa_lora"])
def test_weighted_mean_of_every_tensor(name):
    states = [adapter(seed, frozen_seed=9) for seed in range(4)]
    got = aggregate(name, states, WEIGHTS)
    for key in states[0]:
        pairs = zip(states, WEIGHTS, strict=True)
        right = sum(state[key].double() * weight for state, weight in pairs) / sum(WEIGHTS)
        torch.testing.assert_close(got[key].double(), right, rtol=1e-6, atol=1e-6)


def test_ffa_lora_is_exact():
    states = [adapter(seed, frozen_seed=9) for seed in range(4)]
    assert product_error(states, WEIGHTS, aggregate("ffa_lora", states, WEIGHTS)) < 1e-6


def test_fedavg_misses_the_covariance_of_the_factors():
    states = [adapter(seed) for seed in range(4)]
    got = aggregate("fedavg", states, WEIGHTS)
    assert product_error(states, WEIGHTS, got) > 0.05
    right, share = mean_products(states, WEIGHTS), [weight / sum(WEIGHTS) for weight in WEIGHTS]
    for layer, product in products(got).items():
        key_a, key_b = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
        missing = sum(
            part * (state[key_b] - got[key_b]).double() @ (state[key_a] - got[key_a]).double()
            for state, part in zip(states, share, strict=True)
        )
        torch.testing.assert_close(product + missing, right[layer], rtol=1e-5, atol=1e-5)


def test_one_site_is_taken_bit_for_bit():
    state = adapter(3)
    got = aggregate("fedavg", [state], (41.0,))
    assert all(torch.equal(got[key], state[key]) for key in state)


def test_order_of_arrival_changes_rounding_only():
    states = [adapter(seed) for seed in range(4)]
    forward = aggregate("fedavg", states, WEIGHTS)
    backward = aggregate("fedavg", states[::-1], WEIGHTS[::-1])
    for key in forward:
        torch.testing.assert_close(forward[key], backward[key], rtol=1e-6, atol=1e-6)


def test_nothing_folded_in_leaves_the_model():
    state = adapter(0)
    got, _ = Aggregation(load_experiment("demo")).begin(1, state, {}, []).finish()
    assert all(torch.equal(got[key], state[key]) for key in state)


def test_a_sites_own_tensors_are_never_written_to():
    states = [adapter(seed) for seed in range(3)]
    before = [{key: value.clone() for key, value in state.items()} for state in states]
    aggregate("fedavg", states, (1.0, 2.0, 3.0))
    assert all(torch.equal(state[key], old[key]) for state, old in zip(states, before, strict=True) for key in state)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_that_are_no_weights(weight):
    with pytest.raises(FederationError, match="weight"):
        fold_mean(None, adapter(0), weight)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_is_refused_and_the_mean_unchanged(value):
    mean = fold_mean(None, adapter(0), 1.0)
    kept = {key: tensor.clone() for key, tensor in mean.state.items()}
    bad = adapter(1)
    bad["model.b.lora_B.weight"][2, 1] = value
    with pytest.raises(FederationError, match=r"model\.b\.lora_B\.weight holds values that are not finite"):
        fold_mean(mean, bad, 1.0)
    assert all(torch.equal(mean.state[key], kept[key]) for key in kept)


def test_other_layout_is_refused():
    mean = fold_mean(None, adapter(0), 1.0)
    with pytest.raises(FederationError, match="has shape"):
        fold_mean(mean, adapter(1, rank=5), 1.0)
    with pytest.raises(FederationError, match="missing"):
        check_layout(select(adapter(1), ("lora_B",)), adapter(0))
    with pytest.raises(FederationError, match="not asked for"):
        check_layout({**adapter(1), "x.lora_A.weight": torch.zeros(1)}, adapter(0))


def test_entries_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_method("fedavg").exact = True  # type: ignore[misc]
