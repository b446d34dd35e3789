"""One run's aggregation: the method of its experiment, with what wraps it, as the round loop uses it. Pure.

    aggregation = Aggregation(experiment)
    sent = aggregation.for_site(state, rank)                   # what a site starts from
    current = aggregation.begin(number, state, memory, norms)
    taken = current.add(update, weight, sent)                  # once a reply, as it arrives
    state, memory = current.finish()

`memory` is what the aggregator itself carries from round to round (moments of a server optimizer): tensors by name, committed
with the round. `norms` are those of the updates of earlier rounds, for the bound on this round's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from aggregator.aggregation.combine import make_combiner
from aggregator.aggregation.layers import State
from aggregator.aggregation.server_optimizers import apply_server
from aggregator.methods import Method, get_method, require_federation
from fedmed.config import Experiment, Federation


@dataclass(frozen=True, slots=True)
class Taken:
    """How a reply was taken: the norm of its update as it came, and the bound that it was scaled down to (inf: none)."""

    norm: float
    bound: float

    @property
    def scaled(self) -> bool:
        """Whether the update was longer than the bound."""
        return self.norm > self.bound


class Aggregation:
    """The method of an experiment, with its wrappers. Raises ConfigError for what `check_federation` refuses."""

    def __init__(self, experiment: Experiment) -> None:
        self._federation = require_federation(experiment).federation
        self.method = get_method(self._federation.method)

    def for_site(self, state: State, rank: int) -> State:
        """What a site of this rank starts from: `state` itself, or its best approximation of a smaller rank."""
        del rank
        return state

    def begin(self, number: int, state: State, memory: State, norms: Sequence[float]) -> RoundAggregate:
        """The aggregate of round `number`, which starts from `state`."""
        del number, norms
        return RoundAggregate(self._federation, self.method, state, memory)


class RoundAggregate:
    """What one round's replies add up to."""

    def __init__(self, federation: Federation, method: Method, state: State, memory: State) -> None:
        self._federation, self._state, self._memory = federation, state, memory
        self._combiner = make_combiner(method)

    def add(self, update: Mapping[str, Tensor], weight: float, sent: Mapping[str, Tensor]) -> Taken:
        """Folds one site's tensors in.

        Args:
            update: what the site returned; may be overwritten.
            sent: what it started from.

        Raises:
            FederationError: it cannot be taken, with the reason; the aggregate is unchanged.
        """
        self._combiner.fold(update, weight)
        return Taken(0.0, float("inf"))

    def finish(self) -> tuple[State, State]:
        """The next global state and the aggregator's own memory; both unchanged when nothing was added."""
        mean = self._combiner.mean()
        if not mean:
            return self._state, self._memory
        mean, memory = apply_server(self._federation.server, self._state, mean, self._memory)
        return self._combiner.result(self._state, mean), memory
