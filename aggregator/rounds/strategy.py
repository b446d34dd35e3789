"""The round loop: one exchange a round, replies folded in as they arrive, each round committed whole or not at all.

    join -> [ task -> exchange -> check each reply -> fold -> finish -> evaluate -> commit ] x rounds -> held-out scores

    >>> exchange = LocalExchange(sites)                                                     # doctest: +SKIP
    >>> run_federation(experiment, exchange, store, evaluate, events, initial, base.sha256) # doctest: +SKIP

Which replies count: aggregator/rounds/tasks.py. A site whose reply does not is left out of the round, with the reason in the
round's record and in an event, and the others go on.

| what happens                           | what the round becomes                                               |
| -------------------------------------- | -------------------------------------------------------------------- |
| valid replies >= quorum                | committed with the new adapter                                       |
| valid replies < quorum                 | committed as skipped, the adapter unchanged                          |
| fewer connected sites than the quorum  | waited for up to deadline_s, then skipped: no task, no privacy spent |
| a stage ends (aggregator/rounds/stages.py) | committed with what it trained, or an earlier round's adapter    |
| killed at any moment                   | the next start goes on after the last committed round (see below)    |
| other configuration in the same folder | FederationError before anything is sent                              |

After a restart the task of the unfinished round has the same bytes as before: a site that has trained it hands its
result over again and spends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from torch import Tensor

from aggregator.aggregation.mean import layout, select
from aggregator.aggregation.run import Aggregation
from aggregator.joining.admitted import standing_warnings, why_absent
from aggregator.rounds.ask_sites import Asking
from aggregator.rounds.current import CurrentRound, Order, local_accuracy, site_report
from aggregator.rounds.evaluation import evaluation_due
from aggregator.rounds.exchange import Exchange, Reply
from aggregator.rounds.presence import Presence
from aggregator.rounds.roster import Roster
from aggregator.rounds.stages import Place, Verdict, judge, next_place, require_stages
from aggregator.rounds.store import RoundRecord, RoundStore
from aggregator.rounds.tasks import check_reply, make_task, plan_privacy
from aggregator.watching.events import EventLog, printable
from fedmed.config import Experiment
from fedmed.errors import FederationError, FedMedError
from fedmed.heap import tensors_apart, trim
from fedmed.held_out_plan import plan_evaluation
from fedmed.messages import encode, sha256_hex
from fedmed.metrics.scores import Scores
from fedmed.models.encoding import State, encode_parts
from fedmed.models.kinds import kind_of

Evaluate = Callable[[State], Scores]
Watch = Callable[[Callable[[], None]], AbstractContextManager[None]]


def no_watch(look: Callable[[], None]) -> AbstractContextManager[None]:
    """Nobody looks after the sites but the rounds themselves."""
    return nullcontext()


# The bound on an update is set by the lengths of the updates of so many rounds before, of the same stage.
NORM_ROUNDS = 5


def run_federation(
    experiment: Experiment,
    exchange: Exchange,
    store: RoundStore,
    evaluate: Evaluate,
    events: EventLog,
    initial: State,
    base_sha256: str,
    watch: Watch = no_watch,
    validate: Evaluate | None = None,
) -> None:
    """Runs all rounds that `store` does not hold yet.

    Args:
        exchange: carries frames to the sites.
        evaluate: scores an adapter on the public test set, for people.
        initial: the whole adapter as drawn from the experiment's public seed; used when `store` is empty.
        base_sha256: of the frozen base model; every site compares it with its own.
        watch: looks after the sites while the rounds run, given what to do at each look.
        validate: scores an adapter on the public validation split, by which stages are judged; None where no stage asks for that.

    Raises:
        FederationError: a stage is judged and there is no `validate`, or it trains nothing; unknown method, too few sites at
            the start, a store of another configuration, or a full disk.
        PrivacyError: no noise reaches the asked epsilon.
    """
    require_stages(experiment.plan, initial, validated=validate is not None)
    federation = Federation(experiment, exchange, store, evaluate, validate, events, base_sha256)
    with watch(federation.look):
        federation.start(initial)
        del initial  # on disk now; where the caller holds none either, its memory is free for the rounds
        joined = False
        while (place := next_place(experiment.plan, federation.records)) is not None:
            if not joined:
                federation.roster.join()
                joined = True
            federation.run_round(place)
        if evaluation_due(experiment, store):
            if not joined:
                federation.roster.join()
            federation.evaluate_at_sites()


class Federation:
    """One run: its settings, its sites, its store; `records`: of the committed rounds, from `start` on."""

    def __init__(
        self,
        experiment: Experiment,
        exchange: Exchange,
        store: RoundStore,
        evaluate: Evaluate,
        validate: Evaluate | None,
        events: EventLog,
        base_sha256: str,
    ) -> None:
        self._experiment = experiment
        self._exchange = exchange
        self._store = store
        self._evaluate, self._validate = evaluate, validate
        self._events = events
        self._base_sha256 = base_sha256
        self._aggregation = Aggregation(experiment)
        self._privacy = plan_privacy(experiment)
        self._release = plan_evaluation(experiment) if experiment.evaluation.federated else None
        self._scores: Scores | None = None
        self._val_scores: Scores | None = None
        self._memory: State = {}
        self.records: list[RoundRecord] = []
        self._run = store.run_id(experiment.name)
        self.roster = Roster(experiment, self._run, exchange, events)
        self._presence = Presence(events)
        self._overdue: dict[int, int] = {}  # node -> the round that it has not answered

    def start(self, initial: State) -> None:
        """Commits round 0 (the zero-shot scores of `initial`), or takes up the last committed round."""
        self.records = self._store.records()
        last = self.records[-1] if self.records else None
        if last is not None and last.config_sha256 != self._experiment.sha256:
            raise FederationError(
                f"{self._store.folder} holds rounds of the configuration {last.config_sha256[:12]}, this one is "
                f"{self._experiment.sha256[:12]}",
                "give the run another name, or move the old folder away",
            )
        if last is not None:
            self._scores, self._val_scores = last.scores, last.val_scores
            self._memory = self._store.memory(last.round)
            return
        begin = time.monotonic()
        self._score(initial)
        assert self._scores is not None  # noqa: S101  just scored
        self._events.emit("zero_shot", accuracy=self._scores.accuracy)
        seconds = time.monotonic() - begin
        record = RoundRecord(0, False, (), {}, self._scores, 0, 0, seconds, 0.0, self._experiment.sha256)
        self.records.append(self._store.commit(replace(record, val_scores=self._val_scores), initial))

    def _score(self, state: State) -> None:
        self._scores = self._evaluate(state)
        self._val_scores = self._validate(state) if self._validate else None

    def look(self) -> None:
        """Tells which sites have gone or come; may be called from another thread."""
        sites = {node: info.site for node, info in dict(self.roster.sites).items()}
        online = self._exchange.online()
        self._presence.look({site for node, site in sites.items() if node in online}, sites.values())

    def run_round(self, place: Place) -> None:
        """One round, committed. The adapter that it starts from stays on disk: the replies' mean and one reply fill the memory."""
        begin = time.monotonic()
        trim()
        number = place.number
        state = self._store.stored(number - 1)
        current = self._prepare(place, state)
        quorum = self._experiment.federation.quorum
        nodes = self.roster.ready()
        if len(nodes) < quorum:
            nodes = self.roster.wait_for_quorum(self._experiment.federation.deadline_s)
        self._note_late()
        deadline_s = self._experiment.federation.deadline_s
        names = sorted(nodes.values())
        told = {"stage": place.name} if place.name else {}
        rounds = self._experiment.rounds
        self._events.emit("round_started", round=number, rounds=rounds, sites=names, deadline_s=deadline_s, **told)
        for message in standing_warnings():
            self._events.emit("warning", round=number, message=message)
        if len(nodes) >= quorum:
            self._exchange_once(current, nodes)
        self._note_absent(current, nodes)
        skipped = len(current.reports) < quorum
        if not skipped:
            new, self._memory = current.aggregate.finish()
            self._score(new)
            state = new
        verdict = self._judge(place, skipped)
        if verdict.keep is not None:
            state = self._store.stored(verdict.keep)
        self._commit(current, state, skipped, time.monotonic() - begin, verdict)

    def evaluate_at_sites(self) -> None:
        """The federated evaluation of the last round's adapter, committed: see aggregator/rounds/evaluation.py."""
        assert self._release is not None  # noqa: S101  asked for
        parts = (self._experiment, self._aggregation, self._exchange, self.roster, self._store, self._events)
        Asking(*parts, self._run, self._base_sha256, self._release).ask()

    def _judge(self, place: Place, skipped: bool) -> Verdict:
        """The verdict on the round just trained; where it names an earlier one, that one's scores and memory are the present."""
        metric = place.stage.curriculum.metric
        known = {record.round: record for record in self.records[place.begin :]}
        scores = {number: record.val_scores for number, record in known.items()} | {place.number: self._val_scores}
        idle = {record.round for record in known.values() if record.skipped} | ({place.number} if skipped else set())
        verdict = judge(place, {number: getattr(own, metric) if own else None for number, own in scores.items()}, idle)
        if verdict.keep is not None:
            kept = known[verdict.keep]
            self._scores, self._val_scores = kept.scores, kept.val_scores
            self._memory = self._store.memory(kept.round)
        return verdict

    def _rank(self, site: str) -> int:
        return self._experiment.federation.site_ranks.get(site, self._experiment.lora.rank)

    def _prepare(self, place: Place, state: Mapping[str, Tensor]) -> CurrentRound:
        ranks = {self._rank(site) for site in self._experiment.partition.sites}
        orders, frames = {}, {}
        for rank in sorted(ranks):
            orders[rank], frames[rank] = self._order(place, self._aggregation.for_site(state, rank), rank)
        # Of this stage alone: with other parts, rates and records an update has another length.
        alike = self.records[place.begin + 1 :][-NORM_ROUNDS:]
        norms = [report.update_norm for record in alike for report in record.replies]
        parts = place.stage.curriculum.parts
        aggregate = self._aggregation.begin(place.number, state, self._memory, norms, parts)
        return CurrentRound(place, aggregate, orders, frames)

    def _order(self, place: Place, sent: Mapping[str, Tensor], rank: int) -> tuple[Order, bytes]:
        """The order, and its frame."""
        method = self._aggregation.method
        frozen = {name: sent[name] for name in sent if kind_of(name) not in {*method.down, *method.personal}}
        task = make_task(self._experiment, method, self._privacy, place, self._run, self._base_sha256, frozen, rank)
        del frozen
        frame = encode(task, encode_parts(select(sent, method.down), task.dtype))
        return Order(task, sha256_hex(frame), sent, layout(sent, task.returned)), frame

    @tensors_apart()
    def _exchange_once(self, current: CurrentRound, nodes: dict[int, str]) -> None:
        asked_equal = self._experiment.federation.weighting == "equal"
        current.equal = asked_equal or any(self.roster.sites[node].num_patients == 0 for node in nodes)
        current.bytes_down = sum(len(current.frames[self._rank(site)]) for site in nodes.values())

        def tell(node: int, online: bool) -> None:
            self._presence.seen(nodes[node], online)

        deadline_s = self._experiment.federation.deadline_s
        self._presence.open_round(current.number, nodes.values(), deadline_s)
        for reply in self._exchange.send(self._hand_over(current, nodes), deadline_s, tell):
            site = nodes[reply.node]
            self._presence.answered(site)
            if reply.frame is None:
                self._overdue[reply.node] = current.number
            try:
                self._take(current, site, reply)
            except FedMedError as error:
                self._leave_out(current, site, error.message)
            del reply  # before the next one comes
            trim()
        self._presence.close_round()

    def _hand_over(self, current: CurrentRound, nodes: dict[int, str]) -> dict[int, bytes]:
        """Each node's frame, which is kept here no longer: the exchange lets go of it once it is on its way."""
        frames, current.frames = current.frames, {}
        return {node: frames[self._rank(site)] for node, site in nodes.items()}

    def _note_late(self) -> None:
        for node in self._exchange.late():
            info = self.roster.sites.get(node)
            if info is not None and node in self._overdue:
                self._events.emit("late", round=self._overdue.pop(node), site=info.site)

    def _take(self, current: CurrentRound, site: str, reply: Reply) -> None:
        """Folds one reply in, or raises FedMedError with the reason why it does not count."""
        if reply.frame is None:
            raise FederationError(reply.error)
        current.bytes_up += len(reply.frame)
        order = current.orders[self._rank(site)]
        result, update = check_reply(reply.frame, order.task, order.task_sha256, site, order.expected, order.sent)
        if not current.equal and not result.num_patients:
            raise FederationError(
                "num_patients=0: told a count when it joined and none now, expected the same of all rounds"
            )
        weight = 1.0 if current.equal else float(result.num_patients)
        taken = current.aggregate.add(update, weight, order.sent, order.task, result.num_patients)
        current.reports.append(site_report(result, reply, weight, taken))
        seconds = round(reply.seconds, 3)
        self._events.emit("reply", round=result.round, site=site, epsilon=result.epsilon, seconds=seconds)
        if taken.scaled:
            self._events.emit("bounded", round=result.round, site=site, norm=taken.norm, bound=taken.bound)

    def _note_absent(self, current: CurrentRound, nodes: dict[int, str]) -> None:
        for site in self._experiment.partition.sites:
            if site not in nodes.values():
                reason = why_absent(site) or "not connected, or still busy with an earlier round"
                self._leave_out(current, site, reason)

    def _leave_out(self, current: CurrentRound, site: str, reason: str) -> None:
        reason = printable(reason)
        current.left_out[site] = reason
        self._events.emit("left_out", round=current.number, site=site, reason=reason)

    def _commit(
        self, current: CurrentRound, state: Mapping[str, Tensor], skipped: bool, seconds: float, verdict: Verdict
    ) -> None:
        reports = tuple(sorted(current.reports, key=lambda report: report.site))
        accuracy, error = local_accuracy(reports, self._privacy.metrics_noise_multiplier)
        record = RoundRecord(
            round=current.number,
            skipped=skipped,
            replies=reports,
            left_out=current.left_out,
            scores=self._scores,
            bytes_up=current.bytes_up,
            bytes_down=current.bytes_down,
            seconds=seconds,
            reply_seconds=max((report.reply_seconds for report in reports), default=0.0),
            config_sha256=self._experiment.sha256,
            local_accuracy=accuracy,
            local_error=error,
            stage=current.place.name,
            ends_stage=verdict.ends_stage,
            val_scores=self._val_scores,
            verdict=verdict.reason,
        )
        self.records.append(self._store.commit(record, state, self._memory))
        self._events.emit(
            "round_committed",
            round=record.round,
            accuracy=None if self._scores is None else self._scores.accuracy,
            replies=len(reports),
            skipped=skipped,
            seconds=round(seconds, 3),
        )
        if verdict.reason:
            self._events.emit("judged", round=record.round, stage=current.place.name, verdict=verdict.reason)
