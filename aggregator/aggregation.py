"""How the sites' adapters become one: a table of methods, each a pure fold over adapter states. Disk, network and
clock are elsewhere.

    site state, weight -> fold -> running weighted mean -> finish -> next global state

    >>> one = {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.zeros(4, 2)}
    >>> two = {"m.lora_A.weight": torch.zeros(2, 3), "m.lora_B.weight": torch.ones(4, 2)}
    >>> method = get_method("fedavg")
    >>> mean = method.fold(method.fold(None, one, 1.0), two, 3.0)
    >>> method.finish(mean, one)["m.lora_A.weight"][0, 0].item()
    0.25

A state maps a tensor's name to a CPU float32 tensor; names end in `lora_A.weight` [r, i] or `lora_B.weight` [o, r], r
the rank, i and o the layer's input and output width. The layer's weight is W0 + s B A, s = alpha / r. Names of other
endings are tensors of modules trained whole (fedmed.models.kinds): every method averages them as they are.

| method   | update of the global adapter     | up / down   | exact                                   | linear |
| -------- | -------------------------------- | ----------- | --------------------------------------- | ------ |
| fedavg   | A = sum w_k A_k, B = sum w_k B_k | A, B / A, B | no: misses sum w_k s (B_k - B)(A_k - A) | yes    |
| ffa_lora | B = sum w_k B_k, A never changes | B / B       | yes: sum w_k s B_k A = s B A            | yes    |

(w_k >= 0 are the weights divided by their sum.) fedavg is FedIT, arXiv 2305.05644; its missing term is what
`product_error` returns. ffa_lora is FFA-LoRA, arXiv 2403.12313: A is drawn from the public seed.

| guarantee                      | the weighted mean of what was folded in, per tensor, to float32 rounding   |
| memory                         | one float32 adapter however many sites; `fold` reuses the mean it is given |
| order of arrival               | changes the last bits only (relative 1e-7 a fold)                          |
| one site                       | its own tensors, bit for bit                                               |
| nothing folded in              | `finish(None, state)` is `state`: the model does not change                |
| weight 0, negative, not finite | FederationError; the mean is unchanged                                     |
| other keys or shapes           | FederationError; the mean is unchanged                                     |
| NaN or infinity in a tensor    | FederationError; the mean is unchanged                                     |
| differential privacy           | post-processing of what the sites released: no further cost                |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmed.errors import FederationError
from fedmed.models.kinds import KINDS, LORA_B, SAVED, kind_of

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """The running weighted mean of the states folded in so far, and the sum of their weights."""

    state: State
    weight: float


@dataclass(frozen=True, slots=True)
class Method:
    """One entry of the table.

    Attributes:
        trainable: kinds of tensors (see fedmed.models.kinds) that a site trains and sends up.
        down: kinds of tensors that the aggregator sends; the others follow from the public seed.
        exact: the aggregated product B A equals the weighted mean of the sites' products.
        linear: the result depends on a weighted sum only, so secure aggregation can compute it.
        mixed_ranks: sites may have adapters of different rank.
        fold: mean so far (None at first), a site's tensors, its weight -> mean.
        finish: mean, global state -> next global state.
    """

    name: str
    trainable: tuple[str, ...]
    down: tuple[str, ...]
    exact: bool
    linear: bool
    mixed_ranks: bool
    paper: str
    fold: Callable[[WeightedMean | None, Mapping[str, Tensor], float], WeightedMean]
    finish: Callable[[WeightedMean | None, State], State]


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Adds a method to the table. Raises FederationError when the name is taken."""
    if method.name in METHODS:
        raise FederationError(
            f"aggregation method {method.name!r} is registered twice", "give the new one its own name"
        )
    METHODS[method.name] = method
    return method


def get_method(name: str) -> Method:
    """The method of this name. Raises FederationError naming the methods there are."""
    if name not in METHODS:
        raise FederationError(f"federation.method={name!r}: expected one of {', '.join(sorted(METHODS))}")
    return METHODS[name]


def select(state: Mapping[str, Tensor], kinds: Sequence[str]) -> State:
    """The tensors of these kinds: those that travel."""
    return {name: tensor for name, tensor in state.items() if kind_of(name) in kinds}


def fold_mean(mean: WeightedMean | None, update: Mapping[str, Tensor], weight: float) -> WeightedMean:
    """The running weighted mean with one more state: mean += (w / W)(x - mean). Reuses the tensors of `mean`.

    Raises:
        FederationError: the weight is not a positive number, or the tensors differ in name or shape or are not finite.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise FederationError(f"weight {weight}: expected a finite number > 0")
    check_finite(update)
    if mean is None:
        return WeightedMean({name: tensor.to(torch.float32, copy=True) for name, tensor in update.items()}, weight)
    check_layout(update, mean.state)
    total = mean.weight + weight
    for name, tensor in mean.state.items():
        tensor.lerp_(update[name].to(torch.float32), weight / total)
    return WeightedMean(mean.state, total)


def replace(mean: WeightedMean | None, state: State) -> State:
    """The global state with the averaged tensors in place of its own; those that were not averaged stay."""
    return dict(state) if mean is None else {**state, **mean.state}


def check_layout(update: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises FederationError when names or shapes differ from `expected`, naming the first difference."""
    if missing := sorted(set(expected) - set(update)):
        raise FederationError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if unknown := sorted(set(update) - set(expected)):
        raise FederationError(f"{len(unknown)} tensors are not asked for, the first is {unknown[0][:120]!r}")
    for name, tensor in expected.items():
        if update[name].shape != tensor.shape:
            shape, right = tuple(update[name].shape), tuple(tensor.shape)
            raise FederationError(f"tensor {name} has shape {shape}, expected {right}")


def check_finite(update: Mapping[str, Tensor]) -> None:
    """Raises FederationError naming the first tensor that holds a NaN or an infinity."""
    for name, tensor in update.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FederationError(f"tensor {name} holds values that are not finite")


def products(state: Mapping[str, Tensor]) -> State:
    """B A of each layer in float64, by the layer's name: [o, i]. Without the scale s."""
    layers = sorted(name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight"))
    return {
        layer: state[f"{layer}.lora_B.weight"].double() @ state[f"{layer}.lora_A.weight"].double() for layer in layers
    }


def mean_products(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> State:
    """The weighted mean of the sites' products B_k A_k in float64: what an exact method must reach."""
    total = sum(weights)
    result: State = {}
    for state, weight in zip(states, weights, strict=True):
        for layer, product in products(state).items():
            result[layer] = result.get(layer, torch.zeros_like(product)) + product * (weight / total)
    return result


def product_error(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float], aggregated: Mapping[str, Tensor]
) -> float:
    """Relative Frobenius error of the aggregated products against the weighted mean of the sites' products."""
    exact, got = mean_products(states, weights), products(aggregated)
    error = sum(float((got[layer] - exact[layer]).square().sum()) for layer in exact)
    norm = sum(float(exact[layer].square().sum()) for layer in exact)
    return math.sqrt(error / norm) if norm else math.sqrt(error)


register(
    Method(
        name="fedavg",
        trainable=KINDS,
        down=KINDS,
        exact=False,
        linear=True,
        mixed_ranks=False,
        paper="arXiv 2305.05644",
        fold=fold_mean,
        finish=replace,
    )
)
register(
    Method(
        name="ffa_lora",
        trainable=(LORA_B, SAVED),
        down=(LORA_B, SAVED),
        exact=True,
        linear=True,
        mixed_ranks=False,
        paper="arXiv 2403.12313",
        fold=fold_mean,
        finish=replace,
    )
)
