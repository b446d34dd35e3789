"""The methods against float64 references: exact ones over several rounds, and the known error of the others."""

import math

import pytest
import torch

from aggregator.aggregation.layers import factors, layers
from aggregator.aggregation.mean import check_layout, check_update, fold_mean, select
from aggregator.aggregation.reference import change_error, mean_changes, weight_changes
from aggregator.aggregation.run import Aggregation
from aggregator.methods import METHODS
from fedmed.errors import FederationError
from tests.helpers_adapters import WEIGHTS, adapter, experiment_of, moved, run_rounds

SCALE = 1.5
EXACT = [name for name, method in METHODS.items() if method.exact]


def start_of(name):
    return adapter(0, core=METHODS[name].core)


@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_reach_the_mean_weight_change_in_every_round(name):
    errors = []
    run_rounds(
        experiment_of(name),
        start_of(name),
        4,
        lambda number, before, sites, after: errors.append(change_error(sites, WEIGHTS, after, SCALE)),
    )
    assert len(errors) == 4 and max(errors) < 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_tensors_trained_whole_are_averaged(name):
    def check(number, before, sites, after):
        right = sum(site["model.head.bias"].double() * weight for site, weight in zip(sites, WEIGHTS, strict=True))
        torch.testing.assert_close(after["model.head.bias"].double(), right / sum(WEIGHTS), rtol=1e-6, atol=1e-6)

    run_rounds(experiment_of(name), start_of(name), 2, check)


def test_fedavg_misses_the_covariance_of_the_factors():
    def check(number, before, sites, after):
        assert change_error(sites, WEIGHTS, after) > 0.02
        right, got = mean_changes(sites, WEIGHTS), weight_changes(after)
        for layer in layers(after):
            up, down = factors(after, layer)
            missing = sum(
                weight / sum(WEIGHTS) * (factors(site, layer)[0] - up) @ (factors(site, layer)[1] - down)
                for site, weight in zip(sites, WEIGHTS, strict=True)
            )
            torch.testing.assert_close(got[layer.a] + missing, right[layer.a], rtol=1e-5, atol=1e-5)

    run_rounds(experiment_of("fedavg"), adapter(0), 1, check)


def test_rolora_moves_one_half_a_round():
    def check(number, before, sites, after):
        for layer in layers(after):
            assert torch.equal(before[layer.a], after[layer.a]) == (number % 2 == 1)
            assert torch.equal(before[layer.b], after[layer.b]) == (number % 2 == 0)

    run_rounds(experiment_of("rolora"), adapter(0), 3, check)


def test_fedsvd_keeps_the_product_and_makes_a_orthonormal():
    def check(number, before, sites, after):
        for layer in layers(after):
            down = factors(after, layer)[1]
            torch.testing.assert_close(down @ down.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-6)
            assert after[layer.a].shape == before[layer.a].shape and after[layer.b].shape == before[layer.b].shape

    run_rounds(experiment_of("fedsvd"), adapter(0), 3, check)


def test_fedsa_averages_a_and_has_no_b_of_its_own():
    def check(number, before, sites, after):
        for layer in layers(after):
            right = sum(site[layer.a].double() * weight for site, weight in zip(sites, WEIGHTS, strict=True))
            torch.testing.assert_close(after[layer.a].double(), right / sum(WEIGHTS), rtol=1e-6, atol=1e-6)
            assert after[layer.b] is before[layer.b]

    run_rounds(experiment_of("fedsa_lora"), adapter(0), 2, check)


@pytest.mark.parametrize("name", METHODS)
def test_one_site_is_what_the_model_becomes(name):
    aggregation = Aggregation(experiment_of(name))
    state = start_of(name)
    current = aggregation.begin(1, state, {}, [])
    update = moved(state, aggregation.method.returned(1), 5)
    site = {**state, **update}
    current.add(update, 41.0, state)
    after, _ = current.finish()
    assert change_error([site], [41.0], after, SCALE) < 1e-6
    if name in ("fedavg", "ffa_lora", "rolora", "fed_sb"):
        assert all(torch.equal(after[key], site[key]) for key in site)


@pytest.mark.parametrize("name", METHODS)
def test_order_of_arrival_changes_rounding_only(name):
    aggregation = Aggregation(experiment_of(name))
    state, results = start_of(name), []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        current = aggregation.begin(1, state, {}, [])
        for index in order:
            current.add(moved(state, aggregation.method.returned(1), index), WEIGHTS[index], state)
        results.append(weight_changes(current.finish()[0], SCALE))
    for key in results[0]:
        torch.testing.assert_close(results[0][key], results[1][key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_nothing_folded_in_leaves_the_model(name):
    state, memory = start_of(name), {"first_moment.model.head.bias": torch.ones(5)}
    got, kept = Aggregation(experiment_of(name)).begin(1, state, memory, []).finish()
    assert set(got) == set(state) and all(torch.equal(got[key], state[key]) for key in state)
    assert kept == memory


@pytest.mark.parametrize("name", METHODS)
def test_neither_the_incoming_state_nor_a_sites_tensors_are_written_to(name):
    aggregation = Aggregation(experiment_of(name))
    state = start_of(name)
    updates = [moved(state, aggregation.method.returned(1), index) for index in range(3)]
    everything = [state, *[dict(update) for update in updates]]
    before = [{key: value.clone() for key, value in own.items()} for own in everything]
    current = aggregation.begin(1, state, {}, [])
    for update in updates:
        current.add(update, 1.0, state)
    current.finish()
    assert all(torch.equal(own[key], old[key]) for own, old in zip(everything, before, strict=True) for key in own)


@pytest.mark.parametrize("name", METHODS)
def test_of_parts_that_are_not_trained_nothing_moves(name):
    """Not by a server's optimizer with moments of an earlier stage, nor by a site that returns something else."""
    server = [] if name in ("fedsvd", "fedex_lora", "flexlora", "flora") else ["federation.server.name=fedavgm"]
    aggregation = Aggregation(experiment_of(name, *server))
    parts = ("multi_modal_projector", "language_model")
    state = {
        key.replace("model", part, 1): tensor
        for seed, part in enumerate(parts)
        for key, tensor in adapter(seed, core=METHODS[name].core).items()
    }
    memory = {f"first_moment.{key}": torch.ones_like(tensor) for key, tensor in state.items()} if server else {}
    current = aggregation.begin(1, state, memory, [], ["projector"])
    for index in range(3):
        current.add(moved(state, aggregation.method.returned(1), index), 1.0, state)
    after, kept = current.finish()
    still = [key for key in state if "language_model" in key]
    assert all(torch.equal(after[key], state[key]) for key in still)
    assert not [key for key in after if "language_model" in key and key not in state]
    assert not server or all(torch.equal(kept[f"first_moment.{key}"], memory[f"first_moment.{key}"]) for key in still)
    assert any(key not in state or not torch.equal(after[key], state[key]) for key in after if key not in still)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_that_are_no_weights(weight):
    with pytest.raises(FederationError, match="weight"):
        check_update(adapter(0), weight, adapter(0))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reply_that_cannot_be_taken_leaves_the_aggregate_as_it_was(name, value):
    aggregation = Aggregation(experiment_of(name))
    state, results = start_of(name), []
    for spoiled in (False, True):
        current = aggregation.begin(1, state, {}, [])
        for index in range(2):
            good = moved(state, aggregation.method.returned(1), index)
            if spoiled:
                bad = {key: tensor.clone() for key, tensor in good.items()}
                next(iter(bad.values())).view(-1)[0] = value
                with pytest.raises(FederationError, match="holds values that are not finite"):
                    current.add(bad, 1.0, state)
                with pytest.raises(FederationError, match="missing"):
                    current.add(dict(list(good.items())[1:]), 1.0, state)
            current.add(good, 1.0, state)
        results.append(current.finish()[0])
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_other_layout_is_refused():
    with pytest.raises(FederationError, match="has shape"):
        check_update(adapter(1, rank=5), 1.0, adapter(0))
    with pytest.raises(FederationError, match="missing"):
        check_layout(select(adapter(1), ("lora_B",)), adapter(0))
    with pytest.raises(FederationError, match="not asked for"):
        check_layout({**adapter(1), "x.lora_A.weight": torch.zeros(1)}, adapter(0))


def test_the_running_mean_is_one_adapter_that_is_reused():
    mean = fold_mean(None, adapter(0), 1.0)
    again = fold_mean(mean, adapter(1), 2.0)
    assert all(again.state[key] is mean.state[key] for key in mean.state)
