"""Robust rules against numpy references, and against sites that send what they did not train."""

import numpy as np
import pytest
import torch

from aggregator.aggregation.reference import distance, weight_changes
from aggregator.aggregation.robust import median, multi_krum, trimmed_mean
from aggregator.aggregation.run import Aggregation
from aggregator.methods import METHODS
from fedmed.errors import FederationError
from tests.helpers_adapters import adapter, experiment_of, moved
from tests.unit.aggregator.test_bounds import with_other_basis

SCALE = 1.5
SHARED = [name for name, method in METHODS.items() if method.shared_basis]


def start_of(name):
    return adapter(0, core=METHODS[name].core)


def robust(method, rule, faulty, *overrides):
    needed = ["federation.weighting=equal"] if rule != "multi_krum" else []
    sites = ["partition.sites=[a,b,c,d,e,f,g]", "federation.quorum=7"]
    settings = [f"federation.robust.rule={rule}", f"federation.robust.faulty={faulty}"]
    return Aggregation(experiment_of(method, *settings, *needed, *sites, *overrides))


def finish(aggregation, state, updates, weights=None):
    current = aggregation.begin(1, state, {}, [])
    for index, update in enumerate(updates):
        current.add(dict(update), weights[index] if weights else 1.0, state)
    return current.finish()[0]


@pytest.mark.parametrize("count", [3, 4, 7])
def test_median_and_trimmed_mean_are_numpys(count):
    updates = [adapter(seed) for seed in range(count)]
    for key in updates[0]:
        stacked = np.stack([update[key].numpy() for update in updates])
        np.testing.assert_allclose(median(updates)[key].numpy(), np.median(stacked, 0), rtol=1e-6)
        ordered = np.sort(stacked, 0)[1:-1]
        np.testing.assert_allclose(trimmed_mean(updates, 1)[key].numpy(), ordered.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attack", [lambda tensor: -20 * tensor, lambda tensor: torch.full_like(tensor, 1e30)])
@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
@pytest.mark.parametrize("method", SHARED)
def test_hostile_sites_cannot_pull_a_number_out_of_the_honest_hull(method, rule, attack):
    aggregation, state = robust(method, rule, 2), start_of(method)
    honest = [moved(state, aggregation.method.returned(1), seed) for seed in range(5)]
    hostile = [{key: attack(tensor) for key, tensor in honest[0].items()} for _ in range(2)]
    current = aggregation.begin(1, state, {}, [])
    for update in [hostile[0], *honest, hostile[1]]:
        current.add(dict(update), 1.0, state)
    mean = current._mean()
    for key in honest[0]:
        stacked = torch.stack([update[key] for update in honest])
        assert bool((mean[key] >= stacked.amin(0)).all()) and bool((mean[key] <= stacked.amax(0)).all())


def reference_krum(vectors, faulty):
    count = len(vectors)
    near = count - faulty - 2
    scores = []
    for index, one in enumerate(vectors):
        apart = sorted(float(((one - other) ** 2).sum()) for place, other in enumerate(vectors) if place != index)
        scores.append(sum(apart[:near]))
    return sorted(np.argsort(scores)[:near].tolist())


@pytest.mark.parametrize("seed", range(4))
def test_multi_krum_chooses_as_the_paper_does_on_dense_changes(seed):
    states = [adapter(10 * seed + index) for index in range(7)]
    vectors = []
    for state in states:
        changes = [change.flatten().numpy() for change in weight_changes(state, SCALE).values()]
        vectors.append(np.concatenate([*changes, state["model.head.bias"].double().numpy()]))
    assert multi_krum(states, 2, SCALE, product_alone=True) == reference_krum(vectors, 2)


@pytest.mark.parametrize("method", METHODS)
def test_multi_krum_is_the_methods_own_result_of_sites_that_stand_together(method):
    aggregation, state = robust(method, "multi_krum", 2), start_of(method)
    returned = aggregation.method.returned(1)
    honest = [moved(state, returned, seed, size=0.1) for seed in range(5)]
    flipped = {key: state[key] - 30 * (tensor - state[key]) for key, tensor in honest[0].items()}
    updates = [flipped, *honest, moved(state, returned, 99, size=50.0)]
    weights = [1e6, 3.0, 4.0, 5.0, 6.0, 7.0, 1e6]
    states = [{**state, **update} for update in updates]
    chosen = multi_krum(states, 2, SCALE, product_alone=aggregation.method.mixed_ranks)
    assert len(chosen) == 3 and set(chosen) <= {1, 2, 3, 4, 5}
    right = finish(Aggregation(experiment_of(method)), state, [updates[place] for place in chosen], weights[4:7])
    got = finish(
        aggregation,
        state,
        updates,
        [weights[4 + chosen.index(place)] if place in chosen else 1e6 for place in range(7)],
    )
    for key, tensor in right.items():
        torch.testing.assert_close(got[key], tensor)


def test_a_change_of_basis_does_not_change_multi_krums_choice():
    states = [adapter(seed) for seed in range(7)]
    other = [with_other_basis(state) if index in (1, 4) else state for index, state in enumerate(states)]
    assert multi_krum(states, 2, SCALE, product_alone=True) == multi_krum(other, 2, SCALE, product_alone=True)


def test_multi_krum_takes_sites_of_different_rank():
    aggregation = robust("flexlora", "multi_krum", 1, "federation.site_ranks.a=2")
    state = adapter(0)
    current = aggregation.begin(1, state, {}, [])
    for index, rank in enumerate((2, 4, 4, 2, 4, 4)):
        sent = aggregation.for_site(state, rank)
        size = 1e4 if index == 5 else 0.1
        current.add(moved(sent, aggregation.method.returned(1), index, size=size), 1.0, sent)
    after = current.finish()[0]
    assert distance(weight_changes(after, SCALE), weight_changes(state, SCALE)) < 100


@pytest.mark.parametrize(("rule", "count"), [("median", 2), ("trimmed_mean", 4), ("multi_krum", 6)])
def test_too_few_replies_for_the_rule_are_an_error(rule, count):
    faulty = 1 if rule == "median" else 2
    aggregation, state = robust("ffa_lora", rule, faulty), adapter(0)
    with pytest.raises(FederationError, match=rf"{count} replies: expected at least {count + 1}"):
        finish(aggregation, state, [moved(state, ("lora_B", "saved"), seed) for seed in range(count)])


def test_a_server_optimizer_steps_towards_the_robust_mean():
    aggregation = robust(
        "ffa_lora", "median", 2, "federation.server.name=fedavgm", "federation.server.learning_rate=0.5"
    )
    plain, state = robust("ffa_lora", "median", 2), adapter(0)
    updates = [moved(state, ("lora_B", "saved"), seed) for seed in range(5)]
    half, whole = finish(aggregation, state, updates), finish(plain, state, updates)
    for key in state:
        torch.testing.assert_close(half[key], state[key].lerp(whole[key], 0.5), rtol=1e-5, atol=1e-5)
