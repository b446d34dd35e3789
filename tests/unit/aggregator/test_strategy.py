"""The round loop with sites in this process: what counts, what is left out, what is committed, where it goes on."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save

from aggregator.rounds.exchange import LocalExchange, Reply
from aggregator.rounds.store import RoundStore
from aggregator.rounds.strategy import run_federation
from aggregator.rounds.tasks import MAX_PATIENTS
from aggregator.watching.events import EventLog, read_events
from fedmed.config import Experiment, load_experiment
from fedmed.errors import FederationError
from fedmed.messages import Refusal, SiteInfo, TrainResult, TrainTask, decode, encode
from fedmed.metrics.scores import Scores
from fedmed.models.adapter import state_sha256
from fedmed.wire.fake_site import FakeSite

BASE = "b" * 64
Site = Callable[[bytes], bytes]


def settings(*overrides: str) -> Experiment:
    # The fake sites step by whole numbers; the bounds are such that honest sites could.
    bounds = ["training.learning_rate=10", "federation.norm_bound=100"]
    fixed = [*bounds, "privacy.noise_multiplier=1.0", "training.rounds=2", "federation.join_timeout_s=0.3"]
    return load_experiment(
        "demo", [*fixed, "federation.method=fedavg", "partition.sites=[north,harbour,valley]", *overrides]
    )


def initial() -> dict[str, torch.Tensor]:
    return {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.zeros(4, 2)}


class Run:
    """A run in a temporary folder; `scored` holds the mean of B of each adapter that was evaluated."""

    def __init__(self, folder, experiment: Experiment | None = None) -> None:
        self.experiment = experiment or settings()
        self.folder = folder
        self.store = RoundStore(folder / "rounds")
        self.scored: list[float] = []
        self.fakes = {
            "north": FakeSite("north", 100, shift=1.0),
            "harbour": FakeSite("harbour", 200, shift=2.0),
            "valley": FakeSite("valley", 100, shift=4.0),
        }
        self.sites: dict[str, Site] = {name: site.handle for name, site in self.fakes.items()}

    def evaluate(self, state: dict[str, torch.Tensor]) -> Scores:
        self.scored.append(round(state["m.lora_B.weight"].mean().item(), 4))
        return Scores(10, 0.5, None, None, min(1.0, 0.5 + 0.01 * len(self.scored)), 0.5)

    def go(self, exchange: LocalExchange | None = None) -> None:
        events = EventLog(self.folder / "events.jsonl")
        exchange = exchange or LocalExchange(self.sites)
        run_federation(self.experiment, exchange, self.store, self.evaluate, events, initial(), BASE)

    def events(self, kind: str) -> list[dict]:
        return [event for event in read_events(self.folder / "events.jsonl") if event["kind"] == kind]

    def spoil(self, name: str, change: Callable[[TrainResult, bytes], bytes]) -> None:
        """Lets `change` write the site's answers to training tasks."""
        honest = self.fakes[name].handle

        def answer(frame: bytes) -> bytes:
            reply = honest(frame)
            message, payload = decode(reply)
            return change(message, bytes(payload)) if isinstance(message, TrainResult) else reply

        self.sites[name] = answer


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def test_an_update_that_no_optimizer_makes_is_scaled_down_and_told_from_the_first_round_on(tmp_path):
    run = Run(tmp_path, settings("training.learning_rate=1e-3"))
    run.fakes["valley"].shift = 1e4
    run.fakes["north"].shift = run.fakes["harbour"].shift = 1e-3
    run.go()
    first, second = run.events("bounded")
    assert (first["site"], first["round"], second["round"]) == ("valley", 1, 2) and first["norm"] > 1e4
    [report] = [report for report in run.store.records()[1].replies if report.site == "valley"]
    assert report.update_norm == first["norm"] and report.update_bound == first["bound"] < 1
    assert all(abs(mean) < 1 for mean in run.scored)


def test_rounds_are_the_weighted_mean_of_the_sites(run):
    run.go()
    records = run.store.records()
    assert [record.round for record in records] == [0, 1, 2]
    step = (100 * 1.0 + 200 * 2.0 + 100 * 4.0) / 400
    assert run.scored == [0.0, step, 2 * step]
    assert run.store.state(2)["m.lora_A.weight"][0, 0].item() == pytest.approx(1 + 2 * step)
    assert [report.site for report in records[1].replies] == ["harbour", "north", "valley"]
    assert {report.site: report.weight for report in records[1].replies}["harbour"] == 200.0
    assert records[0].scores.accuracy == run.events("zero_shot")[0]["accuracy"]
    assert not records[2].skipped
    assert records[2].left_out == {}


def test_equal_weighting(tmp_path):
    run = Run(tmp_path, settings("federation.weighting=equal"))
    run.go()
    assert run.scored[1] == pytest.approx((1 + 2 + 4) / 3, abs=1e-3)


def test_bytes_are_those_of_the_frames(run):
    sizes = {"up": 0, "down": 0}

    def count(name: str) -> Site:
        def answer(frame: bytes) -> bytes:
            reply = run.fakes[name].handle(frame)
            if isinstance(decode(frame)[0], TrainTask):
                sizes["down"] += len(frame)
                sizes["up"] += len(reply)
            return reply

        return answer

    run.sites = {name: count(name) for name in run.fakes}
    run.go()
    records = run.store.records()
    assert sum(record.bytes_up for record in records) == sizes["up"]
    assert sum(record.bytes_down for record in records) == sizes["down"]
    assert sum(report.bytes_up for report in records[1].replies) == records[1].bytes_up


def test_ffa_lora_sends_b_only_and_names_the_frozen_a(tmp_path):
    run = Run(tmp_path, settings("federation.method=ffa_lora"))
    seen = []

    def watch(frame: bytes) -> bytes:
        task, payload = decode(frame)
        seen.append((task, len(payload)))
        return run.fakes["north"].handle(frame)

    run.sites["north"] = watch
    run.go()
    task = seen[-1][0]
    assert task.trainable == ("lora_B", "saved")
    assert task.frozen_sha256 == state_sha256({"m.lora_A.weight": initial()["m.lora_A.weight"]})
    assert seen[-1][1] == len(save({"m.lora_B.weight": torch.zeros(4, 2)}))
    assert torch.equal(run.store.state(2)["m.lora_A.weight"], initial()["m.lora_A.weight"])


def replaced(**changes) -> Callable[[TrainResult, bytes], bytes]:
    return lambda result, payload: encode(dataclasses.replace(result, **changes), payload)


def tensors(**state: torch.Tensor) -> Callable[[TrainResult, bytes], bytes]:
    names = {"a": "m.lora_A.weight", "b": "m.lora_B.weight", "x": "other.lora_A.weight"}
    return lambda result, payload: encode(result, save({names[key]: value for key, value in state.items()}))


def flipped(result: TrainResult, payload: bytes) -> bytes:
    frame = bytearray(encode(result, payload))
    frame[-1] ^= 1
    return bytes(frame)


A, B = torch.ones(2, 3), torch.zeros(4, 2)
BAD = {
    "not a frame": (lambda *_: b"hello", "not a FedMed frame"),
    "damaged": (flipped, "is damaged"),
    "cut off": (lambda result, payload: encode(result, payload)[:-5], "is damaged"),
    "another run": (replaced(run="other"), "answered for run, round, site"),
    "another round": (replaced(round=7), "answered for run, round, site"),
    "another site's name": (replaced(site="valley"), "answered for run, round, site"),
    "another task": (replaced(task_sha256="0" * 64), "answered task"),
    "no patients": (replaced(num_patients=0), "num_patients=0"),
    "negative patients": (replaced(num_patients=-5), "num_patients=-5"),
    "absurd patients": (replaced(num_patients=MAX_PATIENTS + 1), "num_patients="),
    "missing tensor": (tensors(a=A), "tensors are missing"),
    "unknown tensor": (tensors(a=A, b=B, x=A.clone()), "not asked for"),
    "other rank": (tensors(a=torch.ones(3, 3), b=torch.ones(4, 3)), "has shape"),
    "nan": (tensors(a=A, b=torch.full((4, 2), float("nan"))), "not finite"),
    "infinity": (tensors(a=torch.full((2, 3), float("inf")), b=B), "not finite"),
    "float64": (tensors(a=A.double(), b=B.double()), "has dtype F64"),
    "garbage payload": (lambda result, _: encode(result, b"\x00" * 50), "not safetensors"),
    "oversize": (lambda result, _: encode(result, b"\x00" * (1 << 22)), "expected at most"),
    "refusal": (lambda *_: encode(Refusal("r", 1, "harbour", "budget_exhausted", "no", False)), "budget_exhausted"),
    "wrong type": (lambda *_: encode(SiteInfo("r", "harbour", "1", 1, "", 0.0, 0.0)), "expected train_result"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_site_is_left_out_and_named_and_the_others_go_on(run, name):
    change, reason = BAD[name]
    run.spoil("harbour", change)
    run.go()
    record = run.store.records()[1]
    assert not record.skipped
    assert [report.site for report in record.replies] == ["north", "valley"]
    assert list(record.left_out) == ["harbour"]
    assert reason in record.left_out["harbour"]
    assert run.scored[1] == (100 * 1.0 + 100 * 4.0) / 200
    assert [event["site"] for event in run.events("left_out")] == ["harbour", "harbour"]


def test_below_the_quorum_the_model_does_not_change(run):
    for name in ("harbour", "valley"):
        run.spoil(name, replaced(num_patients=0))
    run.go()
    record = run.store.records()[1]
    assert record.skipped
    assert sorted(record.left_out) == ["harbour", "valley"]
    assert record.adapter_sha256 == record.parent_sha256
    assert run.scored == [0.0]
    assert record.scores == run.store.records()[0].scores
    assert [event["skipped"] for event in run.events("round_committed")] == [True, True]


def test_a_site_that_fails_or_goes_is_named_each_round(run):
    exchange = LocalExchange(run.sites)
    run.spoil("north", lambda *_: exchange.disconnect("valley") or encode(Refusal("r", 1, "", "failed", "x", True)))
    run.experiment = settings("federation.quorum=1")
    exchange = LocalExchange(run.sites)
    run.go(exchange)
    first, second = run.store.records()[1:]
    assert first.left_out["valley"] == "the node is not connected"
    assert second.left_out["valley"].startswith("not connected")
    assert [report.site for report in second.replies] == ["harbour"]


def test_an_answer_after_its_round_is_dropped_and_told(run):
    class Slow(LocalExchange):
        """The third node answers the first task too late."""

        sent = 0

        def send(self, frames, deadline_s, tell=lambda node, online: None):
            for reply in super().send(frames, deadline_s, tell):
                task = decode(next(iter(frames.values())))[0]
                late = reply.node == 3 and isinstance(task, TrainTask) and task.round == 1
                yield Reply(3, None, "no reply within 300 s") if late else reply
                self.sent += late

        def late(self):
            came, self.sent = [3] * self.sent, 0
            return came

    run.go(Slow(run.sites))
    first, second = run.store.records()[1:]
    assert first.left_out == {"valley": "no reply within 300 s"} and not second.left_out
    assert [(event["round"], event["site"]) for event in run.events("late")] == [(1, "valley")]


def test_no_task_is_sent_while_the_quorum_is_not_connected(run):
    run.experiment = settings("federation.deadline_s=0.1", "training.rounds=3")
    exchange = LocalExchange(run.sites)

    def leave(result: TrainResult, payload: bytes) -> bytes:
        for name in ("north", "harbour"):
            exchange.disconnect(name)
        return encode(result, payload)

    run.spoil("valley", leave)
    exchange = LocalExchange(run.sites)
    run.go(exchange)
    assert run.fakes["valley"].tasks == [1]
    assert [record.skipped for record in run.store.records()] == [False, False, True, True]


def test_too_few_sites_at_the_start(run):
    del run.sites["north"], run.sites["valley"]
    with pytest.raises(FederationError, match=r"1 sites joined .* missing: north, valley"):
        run.go()
    waiting = run.events("waiting")
    assert waiting[-1]["sites"] == ["harbour"]
    assert waiting[-1]["quorum"] == 2


def test_the_quorum_goes_on_without_the_missing_site(run):
    del run.sites["valley"]
    run.go()
    assert run.store.last().round == 2
    assert "valley" in run.store.last().left_out


def test_strangers_and_second_nodes_are_left_out(run):
    run.sites["stranger"] = FakeSite("stranger").handle
    run.sites["north-again"] = FakeSite("north", 10_000, shift=50.0).handle
    run.go()
    reasons = [event["reason"] for event in run.events("left_out")]
    assert any("'stranger', which is not one of partition.sites" in reason for reason in reasons)
    assert any("and so does another connected node" in reason for reason in reasons)
    assert run.scored[1] == (100 * 1.0 + 200 * 2.0 + 100 * 4.0) / 400


def test_a_new_start_goes_on_after_the_last_round(run, tmp_path):
    run.experiment = settings("training.rounds=4")
    calls = []

    def stop_at_three(frame: bytes) -> bytes:
        task = decode(frame)[0]
        if isinstance(task, TrainTask):
            calls.append((task.round, frame))
            if task.round == 3 and len(calls) == 3:
                raise KeyboardInterrupt
        return run.fakes["north"].handle(frame)

    run.sites["north"] = stop_at_three
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert run.store.last().round == 2
    run.go()
    assert run.store.last().round == 4
    assert [number for number, _ in calls] == [1, 2, 3, 3, 4]
    assert calls[2][1] == calls[3][1]  # the same bytes: a site recognises the task that it has done
    assert len(run.events("zero_shot")) == 1
    before = len(run.scored)
    run.go()
    assert len(run.scored) == before


def test_a_folder_of_another_configuration_is_refused(run):
    run.go()
    run.experiment = settings("training.learning_rate=0.5")
    with pytest.raises(FederationError, match="holds rounds of the configuration"):
        run.go()


def test_events_tell_the_story(run):
    run.go()
    kinds = [event["kind"] for event in read_events(run.folder / "events.jsonl")]
    assert kinds[0] == "zero_shot"
    assert kinds[-1] == "round_committed"
    assert kinds.count("joined") == 3
    assert kinds.count("reply") == 6
    assert kinds.index("round_started") < kinds.index("reply") < kinds.index("round_committed")
