"""The methods that add up products: residuals, mixed ranks, and what a truncation loses."""

import pytest
import torch

from aggregator.aggregation.layers import factors, layers
from aggregator.aggregation.reference import change_error, distance, mean_changes, weight_changes
from aggregator.aggregation.run import Aggregation
from aggregator.aggregation.stacking import ProductSum
from aggregator.aggregation.svd import product_svd, truncate
from fedmed.models.kinds import kind_of
from tests.helpers_adapters import LAYERS, WEIGHTS, adapter, experiment_of, moved, run_rounds

SCALE = 1.5
RANKS = ["federation.site_ranks.north=2", "federation.site_ranks.valley=1"]
MIXED = (4, 2, 1, 3)


def widths(state):
    return {key.split(".residual_")[0]: len(state[key]) for key in state if key.endswith("residual_down.weight")}


@pytest.mark.parametrize("method", ["fedex_lora", "flora"])
def test_residuals_stay_exact_and_no_wider_than_their_layer_over_many_rounds(method):
    def check(number, before, sites, after):
        assert change_error(sites, WEIGHTS, after, SCALE) < 1e-6
        for path, width in widths(after).items():
            outputs, inputs = LAYERS[path][0], torch.Size(LAYERS[path][1]).numel()
            assert 0 < width <= min(outputs, inputs)

    last = run_rounds(experiment_of(method), adapter(0), 12, check)
    assert set(widths(last)) == set(LAYERS)


def test_fedex_residual_is_what_the_product_of_the_means_lacks():
    """In the right orientation, which a square layer would not tell by its shape."""

    def check(number, before, sites, after):
        for layer in layers(after):
            up, down = factors(after, layer)
            right = mean_changes(sites, WEIGHTS, SCALE)[layer.a] - SCALE * up @ down
            got = after[layer.up].flatten(1).double() @ after[layer.down].flatten(1).double()
            torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)

    run_rounds(experiment_of("fedex_lora"), adapter(0), 1, check)


def test_fedex_with_one_site_needs_no_residual():
    aggregation, state = Aggregation(experiment_of("fedex_lora")), adapter(0)
    current = aggregation.begin(1, state, {}, [])
    current.add(moved(state, ("lora_A", "lora_B", "saved"), 1), 5.0, state)
    assert set(current.finish()[0]) == set(state)


def test_flora_takes_sites_of_any_rank():
    run_rounds(
        experiment_of("flora", *RANKS),
        adapter(0),
        5,
        lambda number, before, sites, after: assert_exact(sites, after),
        ranks=MIXED,
    )


def assert_exact(sites, after):
    assert change_error(sites, WEIGHTS, after, SCALE) < 1e-6


def test_flora_begins_again_from_the_seed_and_the_round():
    states = []

    def check(number, before, sites, after):
        assert all(not after[layer.b].any() for layer in layers(after))
        states.append(after)

    run_rounds(experiment_of("flora"), adapter(0), 3, check)
    run_rounds(experiment_of("flora"), adapter(9), 1, check)
    for layer in layers(states[0]):
        first, second, third, other_run = (state[layer.a] for state in states)
        assert not torch.equal(first, second) and not torch.equal(second, third)
        assert torch.equal(first, other_run)  # whatever the sites sent
        spread = 1.0 if layer.a.endswith("embedding_A") else first[0].numel() ** -0.5
        assert 0.8 * spread < float(first.abs().max()) <= spread


def test_flora_starts_a_smaller_site_with_the_same_model():
    aggregation, state = Aggregation(experiment_of("flora", *RANKS)), adapter(0)
    for layer in layers(state):
        state[layer.b].zero_()
    sent = aggregation.for_site(state, 2)
    assert all(len(sent[layer.a]) == 2 and sent[layer.b].shape[1] == 2 for layer in layers(sent))
    assert distance(weight_changes(state), weight_changes(sent)) == 0


def test_flexlora_loses_what_the_best_truncation_loses_and_no_more():
    def check(number, before, sites, after):
        right, got = mean_changes(sites, WEIGHTS, SCALE), weight_changes(after, SCALE)
        for layer in layers(after):
            lost = torch.linalg.svdvals(right[layer.a])[4:].square().sum().sqrt()
            assert float((right[layer.a] - got[layer.a]).norm()) == pytest.approx(float(lost), rel=1e-4, abs=1e-5)

    run_rounds(experiment_of("flexlora", *RANKS), adapter(0), 3, check, ranks=MIXED)


def test_flexlora_gives_each_site_the_best_of_its_rank():
    aggregation, state = Aggregation(experiment_of("flexlora", *RANKS)), adapter(0)
    assert aggregation.for_site(state, 4) is state
    sent = aggregation.for_site(state, 2)
    for layer in layers(state):
        whole, part = weight_changes(state)[layer.a], weight_changes(sent)[layer.a]
        assert len(sent[layer.a]) == 2 and sent[layer.a].shape[1:] == state[layer.a].shape[1:]
        lost = torch.linalg.svdvals(whole)[2:].square().sum().sqrt()
        assert float((whole - part).norm()) == pytest.approx(float(lost), rel=1e-5)


def test_a_first_adapter_with_b_zero_can_be_trained_at_every_rank():
    aggregation, state = Aggregation(experiment_of("flexlora", *RANKS)), adapter(0)
    for layer in layers(state):
        state[layer.b].zero_()
    sent = aggregation.for_site(state, 2)
    for layer in layers(sent):
        down = factors(sent, layer)[1]
        torch.testing.assert_close(down @ down.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-6)
        assert not sent[layer.b].any()


@pytest.mark.parametrize(("outputs", "inputs", "rank"), [(9, 6, 4), (6, 6, 6), (3, 8, 5), (8, 3, 5), (2, 2, 8)])
def test_truncation_of_every_shape(outputs, inputs, rank):
    random = torch.Generator().manual_seed(outputs)
    up, down = torch.randn(outputs, rank, generator=random), torch.randn(rank, inputs, generator=random)
    left, values, right = product_svd(up, down)
    dense = up.double() @ down.double()
    torch.testing.assert_close(left * values @ right, dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values, torch.linalg.svdvals(dense)[: len(values)], rtol=1e-10, atol=1e-12)
    new_up, new_down = truncate(up, down, rank)
    assert new_up.shape == up.shape and new_down.shape == down.shape
    torch.testing.assert_close(new_up @ new_down, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sites", [1, 3, 40])
def test_a_sum_of_products_takes_no_more_room_than_its_layer(sites):
    total, right = ProductSum(), torch.zeros(12, 10, dtype=torch.float64)
    random = torch.Generator().manual_seed(sites)
    for index in range(sites):
        up, down = torch.randn(12, 2, generator=random), torch.randn(2, 10, generator=random)
        total.add(up, down, index + 1.0)
        right += (index + 1.0) * up.double() @ down.double()
    up, down = total.mean()
    assert up.shape[1] <= 12
    torch.testing.assert_close(up @ down, right / (sites * (sites + 1) / 2), rtol=1e-12, atol=1e-12)


def test_residuals_are_named_as_the_model_expects_them():
    last = run_rounds(experiment_of("fedex_lora"), adapter(0), 1)
    assert {kind_of(key) for key in last if "residual" in key} == {"residual"}
    width = widths(last)["model.conv"]
    assert last["model.conv.residual_up.weight"].shape == (7, width)
    assert last["model.conv.residual_down.weight"].shape == (width, 3, 2, 2)
    assert last["model.words.residual_down.weight"].shape[1] == 20
