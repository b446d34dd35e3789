"""The optimizers at the aggregator against a direct float64 implementation of the paper's formulas, over rounds."""

import numpy as np
import pytest
import torch

from aggregator.aggregation.run import Aggregation
from aggregator.aggregation.server_optimizers import apply_server
from fedmed.errors import FederationError
from tests.helpers_adapters import WEIGHTS, adapter, experiment_of, moved

SETTINGS = ["federation.server.learning_rate=0.3", "federation.server.beta1=0.8", "federation.server.beta2=0.7"]
TAU = 0.01


class Paper:
    """Algorithm 2 of arXiv 2003.00295 for one tensor, and server momentum of arXiv 1909.06335."""

    def __init__(self, name):
        self.name, self.first, self.second = name, 0.0, TAU**2

    def step(self, state, mean):
        delta = mean - state
        if self.name == "fedavgm":
            self.first = 0.8 * self.first + delta
            return state + 0.3 * self.first
        self.first = 0.8 * self.first + 0.2 * delta
        if self.name == "fedadam":
            self.second = 0.7 * self.second + 0.3 * delta**2
        else:
            self.second = self.second - 0.3 * delta**2 * np.sign(self.second - delta**2)
        return state + 0.3 * self.first / (np.sqrt(self.second) + TAU)


@pytest.mark.parametrize("method", ["fedavg", "ffa_lora", "rolora", "fed_sb", "fedsa_lora"])
@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_several_rounds_are_those_of_the_paper(name, method):
    experiment = experiment_of(method, f"federation.server.name={name}", f"federation.server.tau={TAU}", *SETTINGS)
    aggregation = Aggregation(experiment)
    state, memory = adapter(0, core=aggregation.method.core), {}
    papers = {key: Paper(name) for key in state}
    for number in range(1, 6):
        current = aggregation.begin(number, state, memory, [])
        updates = [moved(state, aggregation.method.returned(number), 10 * number + index) for index in range(4)]
        for update, weight in zip(updates, WEIGHTS, strict=True):
            current.add(dict(update), weight, state)
        after, memory = current.finish()
        for key in state:
            if key not in updates[0]:
                assert torch.equal(after[key], state[key])
                continue
            shares = zip(updates, WEIGHTS, strict=True)
            mean = sum(update[key].double().numpy() * weight for update, weight in shares) / sum(WEIGHTS)
            right = papers[key].step(state[key].double().numpy(), mean)
            np.testing.assert_allclose(after[key].double().numpy(), right, rtol=3e-5, atol=3e-5)
        state = after


def test_without_an_optimizer_the_mean_is_the_state():
    aggregation = Aggregation(experiment_of("fedavg"))
    state, update = adapter(0), adapter(1)
    current = aggregation.begin(1, state, {}, [])
    current.add(dict(update), 3.0, state)
    after, memory = current.finish()
    assert memory == {} and all(torch.equal(after[key], update[key]) for key in update)


def test_a_round_finished_twice_gives_the_same_twice():
    server = experiment_of("fedavg", "federation.server.name=fedyogi").federation.server
    state, mean, memory = adapter(0), adapter(1), {}
    _, memory = apply_server(server, state, mean, memory)
    first, second = (apply_server(server, state, mean, memory) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_moments_of_another_layout_are_refused():
    server = experiment_of("fedavg", "federation.server.name=fedadam").federation.server
    with pytest.raises(FederationError, match=r"first_moment\.model\.conv\.lora_A\.weight has shape"):
        apply_server(server, adapter(0), adapter(1), {"first_moment.model.conv.lora_A.weight": torch.zeros(2)})
