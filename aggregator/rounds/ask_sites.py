"""Asks the sites for the federated evaluation of the last round's adapter, and commits what comes.

    Asking(experiment, aggregation, exchange, roster, store, events, run, base_sha256, privacy).ask() -> EvaluationRecord

What happens when: aggregator/rounds/evaluation.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from aggregator.aggregation.mean import select
from aggregator.aggregation.run import Aggregation
from aggregator.joining.admitted import why_absent
from aggregator.rounds.evaluation import (
    EvaluationRecord,
    SiteSums,
    check_answer,
    commit_evaluation,
    told_scores,
)
from aggregator.rounds.exchange import Exchange
from aggregator.rounds.roster import Roster
from aggregator.rounds.store import RoundStore
from aggregator.watching.events import EventLog, printable
from fedmed.config import Experiment
from fedmed.errors import FederationError, FedMedError
from fedmed.held_out_plan import release_cost
from fedmed.messages import EvaluateTask, ReleaseSpec, encode, sha256_hex
from fedmed.models.adapter import state_sha256
from fedmed.models.encoding import encode_parts
from fedmed.models.kinds import kind_of


@dataclass(frozen=True, slots=True)
class Asking:
    """One run's evaluation: its settings, its sites, its store."""

    experiment: Experiment
    aggregation: Aggregation
    exchange: Exchange
    roster: Roster
    store: RoundStore
    events: EventLog
    run: str
    base_sha256: str
    privacy: ReleaseSpec

    def ask(self) -> EvaluationRecord:
        """Asks, waits at most federation.deadline_s, and commits.

        Raises:
            FederationError: the disk does not take it.
        """
        begin, last = time.monotonic(), self.store.last()
        assert last is not None  # noqa: S101  the rounds are over
        privacy, deadline_s = self.privacy, self.experiment.federation.deadline_s
        state = self.store.stored(last.round)
        nodes = self.roster.ready()
        names = sorted(nodes.values())
        self.events.emit("evaluation_started", round=last.round, sites=names, deadline_s=deadline_s)
        orders = {rank: self._order(state, rank, last.round) for rank in {self._rank(site) for site in names}}
        sent = {node: orders[self._rank(site)] for node, site in nodes.items()}
        replies: list[SiteSums] = []
        left_out = {
            site: why_absent(site) or "not connected, or still busy with the last round"
            for site in self.experiment.partition.sites
            if site not in names
        }
        for reply in self.exchange.send({node: frame for node, (_, frame) in sent.items()}, deadline_s):
            site, (task, frame) = nodes[reply.node], sent[reply.node]
            try:
                if reply.frame is None:
                    raise FederationError(reply.error)
                replies.append(check_answer(reply.frame, task, sha256_hex(frame), site))
            except FedMedError as error:
                left_out[site] = printable(error.message)
        for site, reason in left_out.items():
            self.events.emit("left_out", round=last.round, site=site, reason=reason)
        record = EvaluationRecord(
            round=last.round,
            adapter_sha256=last.adapter_sha256,
            scores=self.experiment.evaluation.scores,
            noise_multiplier=privacy.noise_multiplier,
            epsilon=release_cost(privacy),
            delta=privacy.delta,
            replies=tuple(sorted(replies, key=lambda item: item.site)),
            left_out=left_out,
            seconds=round(time.monotonic() - begin, 3),
        )
        commit_evaluation(self.store.folder, record)
        self._tell(record)
        return record

    def _rank(self, site: str) -> int:
        return self.experiment.federation.site_ranks.get(site, self.experiment.lora.rank)

    def _order(self, state: Mapping[str, Tensor], rank: int, number: int) -> tuple[EvaluateTask, bytes]:
        """The task for sites of a rank, and its frame; the same bytes after a restart."""
        method, lora = self.aggregation.method, self.experiment.lora
        adapter = self.aggregation.for_site(state, rank)
        frozen = {name: adapter[name] for name in adapter if kind_of(name) not in {*method.down, *method.personal}}
        task = EvaluateTask(
            run=self.run,
            round=number,
            config_sha256=self.experiment.sha256,
            base_model=self.experiment.base_model.name,
            base_sha256=self.base_sha256,
            lora=replace(lora.spec, rank=rank, alpha=lora.alpha * rank / lora.rank),
            init_seed=self.experiment.seed,
            frozen_sha256=state_sha256(frozen) if frozen else "",
            personal=method.personal,
            dtype=self.experiment.federation.wire_dtype,
            privacy=self.privacy,
            scores=self.experiment.evaluation.scores,
            max_new_tokens=self.experiment.evaluation.max_new_tokens,
        )
        return task, encode(task, encode_parts(select(adapter, method.down), task.dtype))

    def _tell(self, record: EvaluationRecord) -> None:
        scores = {
            item.name: {
                "value": item.all.value,
                "error": item.all.error,
                "worst_site": item.worst,
                "worst": item.sites[item.worst].value if item.worst else None,
            }
            for item in told_scores(record)
        }
        self.events.emit("evaluated", round=record.round, scores=scores, replies=len(record.replies))
