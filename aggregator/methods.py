"""The aggregation methods: what each trains, what travels, and what may be combined with it. Declarations alone; the
mathematics is in aggregator/aggregation. Knows no torch, so that a wrong experiment is told at once.

    >>> get_method("ffa_lora").trained(1)
    ('lora_B', 'saved')
    >>> check_federation(load_experiment("demo"))
    []

Kinds of tensors: fedmed.models.kinds. docs/aggregation.md has the table with what each method claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedmed.config import Experiment, Federation, load_experiment
from fedmed.errors import ConfigError, FederationError
from fedmed.models.kinds import LORA_A, LORA_B, LORA_R, PLAIN, RESIDUAL, SAVED


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
        mixed_ranks: sites may have adapters of different rank, since of what they send the product B A alone counts.
        shared_basis: the numbers that sites send in one round mean the same at each, so a median can be taken of them.
        kept_basis: they mean the same from one round to the next (where A and B both move, nearly), so that an optimizer
            at the server or at a site can keep moments of them.
    """

    name: str
    cycle: tuple[tuple[str, ...], ...]
    down: tuple[str, ...]
    exact: bool
    linear: bool
    mixed_ranks: bool
    shared_basis: bool
    kept_basis: bool
    paper: str
    personal: tuple[str, ...] = ()

    def trained(self, number: int) -> tuple[str, ...]:
        """Kinds that a site trains in round `number`, from 1."""
        return self.cycle[(number - 1) % len(self.cycle)]

    def returned(self, number: int) -> tuple[str, ...]:
        """Kinds that a site sends up in round `number`."""
        return tuple(kind for kind in self.trained(number) if kind not in self.personal)

    @property
    def core(self) -> bool:
        """Whether it trains the matrix R between B and A, which `lora.core` puts there."""
        return LORA_R in self.trained(1)

    @property
    def notes(self) -> list[str]:
        """What a reader of a run's report and of its model must know."""
        if not self.personal:
            return []
        kinds = ", ".join(self.personal)
        return [
            f"with {self.name} every site keeps its own {kinds}: the model and the accuracies here lack them, and a hospital makes "
            "its own model with `fedmed-site personal export`"
        ]


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
            shared_basis=False,
            kept_basis=True,
            paper="arXiv 2305.05644",
        ),
        Method(
            "ffa_lora",
            ((LORA_B, SAVED),),
            down=(LORA_B, SAVED),
            exact=True,
            linear=True,
            mixed_ranks=False,
            shared_basis=True,
            kept_basis=True,
            paper="arXiv 2403.12313",
        ),
        Method(
            "rolora",
            ((LORA_B, SAVED), (LORA_A, SAVED)),
            down=PLAIN,
            exact=True,
            linear=True,
            mixed_ranks=False,
            shared_basis=True,
            kept_basis=True,
            paper="arXiv 2502.01755",
        ),
        Method(
            "fedsvd",
            ((LORA_B, SAVED),),
            down=PLAIN,
            exact=True,
            linear=True,
            mixed_ranks=False,
            shared_basis=True,
            kept_basis=False,
            paper="arXiv 2505.12805",
        ),
        Method(
            "fed_sb",
            ((LORA_R, SAVED),),
            down=(LORA_R, SAVED),
            exact=True,
            linear=True,
            mixed_ranks=False,
            shared_basis=True,
            kept_basis=True,
            paper="arXiv 2502.15436",
        ),
        Method(
            "fedsa_lora",
            (PLAIN,),
            down=(LORA_A, SAVED),
            exact=False,
            linear=True,
            mixed_ranks=False,
            shared_basis=True,
            kept_basis=True,
            paper="arXiv 2410.01463",
            personal=(LORA_B,),
        ),
        Method(
            "fedex_lora",
            (PLAIN,),
            down=(*PLAIN, RESIDUAL),
            exact=True,
            linear=False,
            mixed_ranks=False,
            shared_basis=False,
            kept_basis=True,
            paper="arXiv 2410.09432",
        ),
        Method(
            "flexlora",
            (PLAIN,),
            down=PLAIN,
            exact=False,
            linear=False,
            mixed_ranks=True,
            shared_basis=False,
            kept_basis=False,
            paper="arXiv 2402.11505",
        ),
        Method(
            "flora",
            (PLAIN,),
            down=(LORA_A, SAVED, RESIDUAL),
            exact=True,
            linear=False,
            mixed_ranks=True,
            shared_basis=False,
            kept_basis=False,
            paper="arXiv 2409.05976",
        ),
    )
}


def get_method(name: str) -> Method:
    """The method of this name. Raises FederationError naming the methods there are."""
    if name not in METHODS:
        raise FederationError(f"federation.method={name!r}: expected one of {', '.join(sorted(METHODS))}")
    return METHODS[name]


def load_federation(name_or_path: str, overrides: Sequence[str] = ()) -> Experiment:
    """`load_experiment`, and what `check_federation` finds is refused too: for whoever is about to run it."""
    return require_federation(load_experiment(name_or_path, overrides))


def require_federation(experiment: Experiment) -> Experiment:
    """The experiment. Raises ConfigError with every line of `check_federation`."""
    if problems := check_federation(experiment):
        raise ConfigError(problems, "docs/aggregation.md tells what each method can be combined with")
    return experiment


def check_federation(experiment: Experiment) -> list[str]:
    """What of an experiment's federation excludes each other, one line each with the reason; empty when nothing does."""
    federation = experiment.federation
    if federation.method not in METHODS:
        known = ", ".join(sorted(METHODS))
        return [f"federation.method={federation.method!r}: expected one of {known}"]
    method = METHODS[federation.method]
    return [
        *_check_adapter(experiment, method),
        *_check_server(federation, method),
        *_check_robust(federation, method),
        *_check_wire(federation, method),
    ]


def _check_adapter(experiment: Experiment, method: Method) -> list[str]:
    problems = []
    lora, ranks = experiment.lora, experiment.federation.site_ranks
    if ranks and not method.mixed_ranks:
        able = ", ".join(sorted(name for name, other in METHODS.items() if other.mixed_ranks)) or "none"
        problems.append(
            f"federation.site_ranks: {method.name} averages tensors, which must have one shape; ranks can differ with: {able}"
        )
    if larger := sorted(site for site, rank in ranks.items() if rank > lora.rank):
        problems.append(
            f"federation.site_ranks: {larger!r} have more than lora.rank={lora.rank}, expected at most that"
        )
    if lora.core and not method.core:
        problems.append(f"lora.core=true: expected false, {method.name} trains A or B and knows no matrix between them")
    if method.core and not lora.core:
        problems.append(f"lora.core=false: expected true, {method.name} trains the matrix R between B and A alone")
    if not lora.targets and method.name not in (alone := ("fedavg", "ffa_lora")):
        problems.append(
            f"lora.targets=[]: expected some with {method.name}, which acts on A and B; without LoRA take {' or '.join(alone)}"
        )
    judged = [name or "the run" for name, stage in experiment.plan.items() if stage.curriculum.is_judged]
    if method.personal and judged:
        problems.append(
            f"curriculum: {judged[0]} may go back to an earlier adapter, expected patience=0 and min_gain=-1 with "
            f"{method.name}, whose sites keep a part of the model that cannot go back"
        )
    if method.personal and experiment.registry.promote:
        problems.append(
            f"registry.promote=true: expected false, with {method.name} every site keeps a part of its model, and what the "
            "aggregator scores lacks it"
        )
    keeps = any(stage.training.keep_state for stage in experiment.plan.values())
    if keeps and not method.kept_basis:
        problems.append(
            f"training.keep_state=true: expected false, {method.name} factors the adapter anew after every round, and moments "
            "of its old numbers mean nothing for the new ones"
        )
    return problems


def _check_server(federation: Federation, method: Method) -> list[str]:
    server = federation.server
    if server.name == "none":
        if server.learning_rate != 1:
            return [
                f"federation.server.learning_rate={server.learning_rate:g}: expected 1 without an optimizer; fedavgm with beta1=0 "
                "takes steps of another length"
            ]
        return []
    if not method.kept_basis:
        return [
            f"federation.server.name={server.name}: expected none, {method.name} factors the adapter anew after every round, "
            "and moments of its old numbers mean nothing for the new ones"
        ]
    if not method.linear:
        return [
            f"federation.server.name={server.name}: expected none, {method.name} corrects the mean itself, and a step that is "
            "not to the mean would leave its correction wrong"
        ]
    return []


def _check_robust(federation: Federation, method: Method) -> list[str]:
    robust = federation.robust
    if robust.rule == "none":
        return []
    problems = []
    ranked = robust.rule in ("median", "trimmed_mean")
    if ranked and not method.shared_basis:
        problems.append(
            f"federation.robust.rule={robust.rule}: expected multi_krum or none, with {method.name} the same product B A is sent "
            "as other numbers by every site, and their median is of nothing"
        )
    if ranked and federation.weighting != "equal":
        problems.append(
            f"federation.weighting={federation.weighting}: expected equal with {robust.rule}, in which every site has one vote "
            "however many patients it claims"
        )
    if federation.quorum < (least := least_replies(robust.rule, robust.faulty)):
        problems.append(
            f"federation.quorum={federation.quorum}: expected at least {least}, fewer replies let {robust.faulty} hostile "
            f"among them through {robust.rule}"
        )
    return problems


def _check_wire(federation: Federation, method: Method) -> list[str]:
    if federation.wire_dtype != "int8" or method.kept_basis:
        return []
    return [
        f"federation.wire_dtype=int8: expected float32 or bfloat16, {method.name} factors the adapter anew after every round, and "
        "what a site keeps of the rounding's loss means nothing for the new numbers"
    ]


def least_replies(rule: str, faulty: int) -> int:
    """Replies that a robust rule needs against `faulty` hostile ones: 2 f + 3 for multi-Krum, 2 f + 1 for the others."""
    return 2 * faulty + (3 if rule == "multi_krum" else 1)
