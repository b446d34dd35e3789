"""One run's aggregation: the method of its experiment, with what wraps it, as the round loop uses it. Pure.

    aggregation = Aggregation(experiment)
    sent = aggregation.for_site(state, rank)                   # what a site starts from
    current = aggregation.begin(number, state, memory, norms, parts)
    taken = current.add(update, weight, sent, task, patients)  # once a reply, as it arrives
    state, memory = current.finish()

    reply -> checks -> scaled down to the bound -> method's accumulator, or kept for a robust rule
    -> mean -> server optimizer -> next state

`memory` is what the aggregator itself carries from round to round (moments of a server optimizer): tensors by name, committed
with the round. `norms` are those of the updates of earlier rounds, for the bound on this round's. `parts` are those that the
round trains, of the model (fedmed.models.kinds); none are all.

| case                                    | result                                                              |
| --------------------------------------- | ------------------------------------------------------------------- |
| a reply that cannot be taken            | FederationError from `add`; the aggregate is as it was              |
| an update longer than the bound         | scaled down towards what was sent, whatever the method; Taken says so |
| nothing added                           | state and memory unchanged                                          |
| a tensor of a part that is not trained  | it and its moments stay, whatever the sites returned of it          |
| too few replies for the robust rule     | FederationError from `finish`; check_federation asks for a quorum   |
|                                         | that is enough, and the round loop skips a round below the quorum   |
| state, memory, what was sent            | never written to                                                    |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from aggregator.aggregation.bounds import Start, median_bound, reach_bound
from aggregator.aggregation.combine import make_combiner
from aggregator.aggregation.layers import State
from aggregator.aggregation.mean import check_update, layout
from aggregator.aggregation.products import measure_change
from aggregator.aggregation.robust import median, multi_krum, trimmed_mean
from aggregator.aggregation.server_optimizers import apply_server
from aggregator.aggregation.stacking import first_rows
from aggregator.aggregation.svd import refactor
from aggregator.methods import get_method, least_replies, require_federation
from fedmed.config import Experiment
from fedmed.errors import FederationError
from fedmed.messages import TrainTask
from fedmed.models.kinds import part_of


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
        self._experiment = require_federation(experiment)
        self.method = get_method(experiment.federation.method)

    def for_site(self, state: Mapping[str, Tensor], rank: int) -> Mapping[str, Tensor]:
        """What a site of this rank starts from: `state` itself, or its best approximation of a smaller rank."""
        if rank == self._experiment.lora.rank:
            return state
        return first_rows(state, rank) if self.method.name == "flora" else refactor(state, rank)

    def begin(
        self,
        number: int,
        state: Mapping[str, Tensor],
        memory: State,
        norms: Sequence[float],
        parts: Sequence[str] = (),
    ) -> RoundAggregate:
        """The aggregate of round `number`, which starts from `state`, as do the sites that are sent the same object."""
        return RoundAggregate(self._experiment, number, state, memory, norms, parts)


@dataclass(frozen=True, slots=True)
class _Reply:
    update: Mapping[str, Tensor]
    weight: float
    sent: Mapping[str, Tensor]


class RoundAggregate:
    """What one round's replies add up to."""

    def __init__(
        self,
        experiment: Experiment,
        number: int,
        state: Mapping[str, Tensor],
        memory: State,
        norms: Sequence[float],
        parts: Sequence[str],
    ) -> None:
        self._federation, lora = experiment.federation, experiment.lora
        self._method = get_method(self._federation.method)
        self._returned = self._method.returned(number)
        self._scale, self._most_local_steps = lora.alpha / lora.rank, experiment.most_local_steps
        self._state, self._memory, self._parts = state, memory, parts
        self._bound = median_bound(norms, self._federation.norm_bound)
        self._combiner = make_combiner(self._method, self._scale, experiment.seed, number)
        # By identity, which the tuples keep taken.
        self._starts: dict[int, tuple[Mapping[str, Tensor], Start]] = {}
        self._layouts: dict[int, tuple[Mapping[str, Tensor], State]] = {}
        self._kept: list[_Reply] = []
        self._taken = 0

    def add(
        self,
        update: dict[str, Tensor],
        weight: float,
        sent: Mapping[str, Tensor],
        task: TrainTask | None = None,
        patients: int = 0,
    ) -> Taken:
        """Takes one site's tensors.

        Args:
            update: what the site returned; may be overwritten.
            weight: its patients, or 1 where all weigh the same.
            sent: what it started from.
            task: what it was asked to do, which bounds how far it can have moved; None sets no such bound.
            patients: as it told them, 0 where it did not; the bound of some optimizers follows from them.

        Raises:
            FederationError: it cannot be taken, with the reason; the aggregate is unchanged.
        """
        check_update(update, weight, self._layout(sent))
        taken = self._shorten(update, sent, task, patients)
        if self._federation.robust.rule == "none":
            self._combiner.fold(update, weight)
        else:
            self._kept.append(_Reply(update, weight, sent))
        self._taken += 1
        return taken

    def finish(self) -> tuple[State, State]:
        """The next global state and the aggregator's own memory; both unchanged when nothing was added.

        Raises:
            FederationError: too few replies for the robust rule.
        """
        if not self._taken:
            return dict(self._state), self._memory
        mean, memory = apply_server(self._federation.server, self._state, self._mean(), self._memory)
        result = self._combiner.result(self._state, mean)
        return self._where_trained(self._state, result), self._where_trained(self._memory, memory)

    def _where_trained(self, before: Mapping[str, Tensor], after: State) -> State:
        """`after`, but for the tensors of parts that this round does not train: rounding, moments of the server's optimizer,
        a method that factors all layers anew, or a site that returns something else would move them."""
        if not self._parts:
            return after
        kept = {name: before[name] for name in before if part_of(name) not in self._parts}
        return kept | {name: tensor for name, tensor in after.items() if part_of(name) in self._parts}

    def _shorten(
        self, update: dict[str, Tensor], sent: Mapping[str, Tensor], task: TrainTask | None, patients: int
    ) -> Taken:
        """Scales an update that is longer than the bound down to it, tensor by tensor."""
        alone = self._method.mixed_ranks
        change = measure_change(sent, update, self._scale, product_alone=alone)
        reach = math.inf
        if task:
            reach = reach_bound(
                self._start(sent), task, patients, product_alone=alone, most_steps=self._most_local_steps
            )
        taken = Taken(change.norm(), min(self._bound, reach))
        if taken.scaled:
            part = change.part_within(taken.bound)
            for name in update:
                update[name] = sent[name].lerp(update[name].to(sent[name].dtype), part)
        return taken

    def _layout(self, sent: Mapping[str, Tensor]) -> State:
        """Names and shapes of what sites that got it return."""
        if id(sent) not in self._layouts:
            self._layouts[id(sent)] = sent, layout(sent, self._returned)
        return self._layouts[id(sent)][1]

    def _start(self, sent: Mapping[str, Tensor]) -> Start:
        """What is measured of `sent` once, for all the sites that got it."""
        if id(sent) not in self._starts:
            self._starts[id(sent)] = sent, Start.of(sent, list(self._layout(sent)))
        return self._starts[id(sent)][1]

    def _mean(self) -> State:
        """What the replies are on average, by the robust rule where there is one."""
        rule, faulty = self._federation.robust.rule, self._federation.robust.faulty
        if rule == "none":
            return self._combiner.mean()
        if len(self._kept) < (least := least_replies(rule, faulty)):
            raise FederationError(
                f"{len(self._kept)} replies: expected at least {least} for {rule} with faulty={faulty}",
                "raise federation.quorum to that, so that a round with fewer is skipped",
            )
        if rule != "multi_krum":
            updates = [reply.update for reply in self._kept]
            return median(updates) if rule == "median" else trimmed_mean(updates, faulty)
        whole = {id(reply.sent): dict(reply.sent) for reply in self._kept}  # read once, not once a reply
        states = [{**whole[id(reply.sent)], **reply.update} for reply in self._kept]
        for place in multi_krum(states, faulty, self._scale, product_alone=self._method.mixed_ranks):
            self._combiner.fold(self._kept[place].update, self._kept[place].weight)
        return self._combiner.mean()
