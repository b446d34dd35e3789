"""Adapters of random numbers, as sites would send them, and a federation of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from aggregator.aggregation.mean import select
from aggregator.aggregation.run import Aggregation
from fedmed.config import Experiment, load_experiment

State = dict[str, torch.Tensor]
WEIGHTS = (600.0, 17.0, 2300.0, 1.0)
# A wide and a square linear layer, a convolution and an embedding.
LAYERS: dict[str, tuple[int, tuple[int, ...]]] = {
    "model.wide": (9, (6,)),
    "model.square": (8, (8,)),
    "model.conv": (7, (3, 2, 2)),
    "model.words": (6, (20,)),
}


def adapter(seed: int, *, rank: int = 4, core: bool = False) -> State:
    """A state with every kind of layer and a tensor that is trained whole; B is not zero."""
    random = torch.Generator().manual_seed(seed)
    state = {"model.head.bias": torch.randn(5, generator=random)}
    for path, (outputs, inputs) in LAYERS.items():
        a, b = ("lora_embedding_A", "lora_embedding_B") if path == "model.words" else ("lora_A.weight", "lora_B.weight")
        state[f"{path}.{a}"] = torch.randn(rank, *inputs, generator=random)
        state[f"{path}.{b}"] = torch.randn(outputs, rank, *[1] * (len(inputs) - 1), generator=random)
        if core:
            state[f"{path}.lora_R.weight"] = torch.randn(rank, rank, generator=random)
    return state


def experiment_of(method: str, *overrides: str) -> Experiment:
    """The demo with this method, and what the method asks for beside it."""
    needed = {
        "fed_sb": ["lora.core=true"],
        "fedsa_lora": ["registry.promote=false"],
        "fedsvd": ["training.keep_state=false"],
        "flexlora": ["training.keep_state=false"],
        "flora": ["training.keep_state=false"],
    }
    lora = ["lora.rank=4", "lora.alpha=6.0"]  # the scale is 1.5
    return load_experiment("demo", [f"federation.method={method}", *lora, *needed.get(method, []), *overrides])


def moved(state: State, kinds: Sequence[str], seed: int, size: float = 0.3) -> State:
    """What a site returns that started from `state`: its tensors of these kinds, each a little elsewhere."""
    random = torch.Generator().manual_seed(seed)
    return {
        key: tensor + size * torch.randn(tensor.shape, generator=random) for key, tensor in select(state, kinds).items()
    }


Check = Callable[[int, State, list[State], State], Any]


def run_rounds(
    experiment: Experiment,
    state: State,
    rounds: int,
    check: Check = lambda *_: None,
    *,
    ranks: Sequence[int] = (4, 4, 4, 4),
) -> State:
    """Rounds of four sites. `check` sees each round's number, incoming state, the sites' whole states, and the result."""
    aggregation = Aggregation(experiment)
    memory: State = {}
    for number in range(1, rounds + 1):
        current = aggregation.begin(number, state, memory, [])
        sites = []
        for index, rank in enumerate(ranks):
            sent = aggregation.for_site(state, rank)
            update = moved(sent, aggregation.method.returned(number), 100 * number + index)
            sites.append({**sent, **update})
            current.add(update, WEIGHTS[index], sent)
        after, memory = current.finish()
        check(number, state, sites, after)
        state = after
    return state
