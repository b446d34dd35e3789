"""The aggregation methods: what each trains, what travels, and what may be combined with it. Declarations alone; the
mathematics is in aggregator/aggregation. Knows no torch, so that a wrong experiment is told at once.

    >>> get_method("ffa_lora").trained(1)
    ('lora_B', 'saved')
    >>> check_federation(load_experiment("demo"))
    []

Kinds of tensors: fedmed.models.kinds. docs/aggregation.md has the table with what each method claims.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedmed.config import Experiment
from fedmed.errors import FederationError
from fedmed.models.kinds import LORA_B, PLAIN, SAVED


@dataclass(frozen=True, slots=True)
class Method:
    """One entry of the table.

    Attributes:
        cycle: kinds of tensors that a site trains in round 1, 2, ..., then over again.
        down: kinds that the aggregator sends; the others follow from the public seed, or are the sites' own.
        personal: kinds that are trained and stay at the site.
        exact: the aggregated weight change equals the weighted mean of the sites' weight changes.
        linear: the result depends on a weighted sum of what the sites send, so secure aggregation can compute it, and
            the aggregator needs one adapter's memory however many sites there are.
        mixed_ranks: sites may have adapters of different rank.
        fixed_basis: what a site sends has the same meaning, number by number, at every site and in every round: only
            then can an optimizer at the server keep moments of it, and a median be taken of it.
    """

    name: str
    cycle: tuple[tuple[str, ...], ...]
    down: tuple[str, ...]
    exact: bool
    linear: bool
    mixed_ranks: bool
    fixed_basis: bool
    paper: str
    personal: tuple[str, ...] = ()

    def trained(self, number: int) -> tuple[str, ...]:
        """Kinds that a site trains in round `number`, from 1."""
        return self.cycle[(number - 1) % len(self.cycle)]

    def returned(self, number: int) -> tuple[str, ...]:
        """Kinds that a site sends up in round `number`."""
        return tuple(kind for kind in self.trained(number) if kind not in self.personal)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "fedavg",
            (PLAIN,),
            down=PLAIN,
            exact=False,
            linear=True,
            mixed_ranks=False,
            fixed_basis=False,
            paper="arXiv 2305.05644",
        ),
        Method(
            "ffa_lora",
            ((LORA_B, SAVED),),
            down=(LORA_B, SAVED),
            exact=True,
            linear=True,
            mixed_ranks=False,
            fixed_basis=True,
            paper="arXiv 2403.12313",
        ),
    )
}


def get_method(name: str) -> Method:
    """The method of this name. Raises FederationError naming the methods there are."""
    if name not in METHODS:
        raise FederationError(f"federation.method={name!r}: expected one of {', '.join(sorted(METHODS))}")
    return METHODS[name]


def check_federation(experiment: Experiment) -> list[str]:
    """What of `federation` excludes each other, one line each with the reason; empty when nothing does.

    Raises:
        FederationError: unknown method.
    """
    get_method(experiment.federation.method)
    return []
