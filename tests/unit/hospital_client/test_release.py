"""Everything that leaves a site: each field has a source, the documents name it, and one patient changes no other field."""

import ast
import dataclasses
import json
import struct
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedmed.data.manifest import load_manifest, write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.messages import (
    DescribeTask,
    EvaluateResult,
    EvaluateTask,
    Message,
    Refusal,
    SiteInfo,
    TrainResult,
    TrainTask,
    decode,
    encode,
)
from fedmed.privacy.counts import NoisyCounts
from fedmed.wire.site_pb2 import StatusReply
from hospital_client.audit import Audit
from hospital_client.fakes import EchoTrainer, example_policy, example_task, journal_files, linear_epsilon
from hospital_client.ledger import Ledger, Spending
from hospital_client.policy import Policy
from hospital_client.release import PAYLOAD, RELEASED, Source, Trained
from hospital_client.results import ResultStore
from hospital_client.site import Cohort, ShouldStop, Site, TrainRound

ROOT = Path(__file__).parents[3]
TASKS = (DescribeTask, TrainTask, EvaluateTask)  # what comes in; everything else in the contract goes out
NOISY = {Source.MECHANISM, Source.ACCOUNTED_COUNT, Source.KEYED_HASH}
REPLIES = [kind for kind in typing.get_args(Message) if kind not in TASKS]


class NoisyTrainer(EchoTrainer):
    """As EchoTrainer; its counts stand for noise."""

    def __init__(self, counts: NoisyCounts) -> None:
        super().__init__()
        self.counts = counts

    def prepare(self, task: TrainTask, payload: memoryview, lot_size: float) -> TrainRound:
        train = super().prepare(task, payload, lot_size)

        def train_round(should_stop: ShouldStop) -> Trained:
            return dataclasses.replace(train(should_stop), counts=self.counts)

        return train_round


def site_of(root: Path, patients: int, policy: Policy, counts: NoisyCounts) -> Site:
    """A site on the first `patients` of one cohort, as the daemon opens it, but for its training."""
    write_manifest(root / "data", phantom_examples(patients, 0, domain="hospital", split="train"))
    manifest = load_manifest(root / "data")
    assert manifest.num_patients == patients
    files = journal_files(root)
    Ledger.create(files)
    return Site(
        "north",
        policy,
        Cohort.of("north", manifest, files.key),
        ledger=Ledger(files, linear_epsilon),
        audit=Audit(root / "audit.jsonl"),
        results=ResultStore(root / "results"),
        trainer=NoisyTrainer(counts),
    )


def neighbours(folder: Path, policy: Policy, patients: int = 24) -> tuple[Site, Site]:
    """Two sites whose data differ in one patient, with other noise."""
    first = site_of(folder / "without", patients, policy, NoisyCounts(1.0, 2.0))
    return first, site_of(folder / "with", patients + 1, policy, NoisyCounts(-7.0, 8.5))


def answers(site: Site) -> list[bytes]:
    """What a site says to a description, two rounds, four kinds of refusal, and a status request."""
    tasks = [
        example_task(metrics_noise_multiplier=3.0),
        example_task(round=2),
        example_task(method="krum"),
        example_task(round=3, steps=200, noise_multiplier=0.5),  # above the budget
    ]
    frames = [encode(DescribeTask("run-1")), *(encode(task, b"adapter") for task in tasks), b"junk"]
    replies = [site.handle(frame) for frame in frames]
    site._trainer = EchoTrainer(fault=KeyError("p0001"))
    return [*replies, site.handle(encode(example_task(round=4), b"adapter"))]


def changed(first: Site, second: Site) -> dict[str, set[str]]:
    """Message type -> fields in which the two sites' answers differ; the frames are equal but for these."""
    found: dict[str, set[str]] = {}
    for one, other in zip(answers(first), answers(second), strict=True):
        fields = {name for name, value in header(one).items() if header(other)[name] != value}
        if bytes(decode(one)[1]) != bytes(decode(other)[1]):
            fields.add(PAYLOAD)
        assert (one == other) is not bool(fields)
        found.setdefault(decode(one)[0].type, set()).update(fields)
    status = [json_of(site.release.status(state="ready", pid=1)) for site in (first, second)]
    found["status"] = {name for name, value in status[0].items() if status[1][name] != value}
    return found


def header(frame: bytes) -> dict[str, Any]:
    (length,) = struct.unpack(">I", frame[4:8])
    return dict(json.loads(frame[8 : 8 + length]))


def json_of(reply: StatusReply) -> dict[str, Any]:
    return {field.name: getattr(reply, field.name) for field in reply.DESCRIPTOR.fields}


def fields_of(kind: type) -> set[str]:
    if kind is StatusReply:
        return {field.name for field in StatusReply.DESCRIPTOR.fields}
    names = {field.name for field in dataclasses.fields(kind)}
    return names | ({PAYLOAD} if "payload_sha256" in names else set())


@pytest.mark.parametrize("kind", [*REPLIES, StatusReply], ids=lambda kind: kind.__name__)
def test_every_field_of_every_outgoing_message_has_a_source(kind: type) -> None:
    assert set(RELEASED[kind]) == fields_of(kind)


def test_the_table_holds_no_other_message() -> None:
    assert set(RELEASED) == {*REPLIES, StatusReply}
    assert set(REPLIES) == {SiteInfo, TrainResult, EvaluateResult, Refusal}


def test_a_frame_holds_the_fields_of_the_table_and_the_constants_of_the_wire(tmp_path: Path) -> None:
    site = site_of(tmp_path, 24, example_policy(allow_metrics=True), NoisyCounts(0.0, 0.0))
    for frame in answers(site):
        message = decode(frame)[0]
        assert set(header(frame)) - {"protocol", "type"} == set(RELEASED[type(message)]) - {PAYLOAD}


def test_the_document_names_every_field_with_its_source() -> None:
    lines = (ROOT / "docs" / "privacy.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    for kind, fields in RELEASED.items():
        for name, source in fields.items():
            row = [line for line in rows if f"`{kind.__name__}`" in line and f"`{name}`" in line]
            assert len(row) == 1, f"docs/privacy.md: one row for {kind.__name__}.{name}, found {len(row)}"
            assert f"| {source} |" in row[0], f"docs/privacy.md: {kind.__name__}.{name} is of source {source}"


def test_outgoing_messages_are_built_in_one_file() -> None:
    names = {kind.__name__ for kind in RELEASED}
    found = {
        path.name
        for path in sorted((ROOT / "hospital_client").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names
    }
    assert found == {"release.py"}


def test_one_patient_changes_nothing_but_what_has_noise(tmp_path: Path) -> None:
    policy = example_policy(patient_count="hidden", allow_metrics=True)
    found = changed(*neighbours(tmp_path, policy))
    assert found == {
        "site_info": set(),
        "train_result": {"noisy_correct", "noisy_patients"},
        "refusal": set(),
        "status": set(),
    }
    assert all(RELEASED[TrainResult][name] in NOISY for name in found["train_result"])


def test_who_was_in_another_cohort_before_is_not_told(tmp_path: Path) -> None:
    """The one patient brings a past: its loss counts inside, against the budget, and no number that leaves shows it."""
    sites = neighbours(tmp_path, example_policy(patient_count="hidden", allow_metrics=True))
    newcomers = sites[1].cohort.members - sites[0].cohort.members
    for site in sites:
        site.ledger.enrol("earlier", newcomers)
        spending = Spending("earlier", "run-0", 1, "0" * 64, 1.0, 0.1, 2, 1e-5)
        site.ledger.reserve(spending, budget=3.5, delta=1e-5, fingerprint="")
    assert [site.epsilon_spent() for site in sites] == [0.0, pytest.approx(0.2)]
    found = changed(*sites)
    assert set().union(*found.values()) == {"noisy_correct", "noisy_patients"}
    assert decode(sites[0].handle(encode(DescribeTask("run-1"))))[0].epsilon_spent > 0.2  # type: ignore[union-attr]


def test_the_keyed_hash_of_the_data_changes_only_where_the_policy_lets_it(tmp_path: Path) -> None:
    policy = example_policy(patient_count="hidden", allow_metrics=True, dataset_fingerprint="data")
    found = changed(*neighbours(tmp_path, policy))
    differing = {(kind, name) for kind in (SiteInfo, TrainResult) for name in found[kind.type]}
    assert (SiteInfo, "dataset_fingerprint") in differing
    assert {RELEASED[kind][name] for kind, name in differing} <= NOISY


@pytest.mark.parametrize(("patients", "told"), [(24, {"num_patients"}), (22, set())])
def test_a_rounded_count_is_a_function_of_the_data(tmp_path: Path, patients: int, told: set[str]) -> None:
    """Why `hidden` is the default: 24 patients round to 20, 25 to 30, and the policy is all that stands behind it."""
    found = changed(*neighbours(tmp_path, example_policy(allow_metrics=True), patients))
    assert found["site_info"] == found["status"] == told
    assert RELEASED[SiteInfo]["num_patients"] is Source.POLICY


def test_the_default_policy_tells_neither_count_nor_change_and_sends_no_metrics() -> None:
    text = (ROOT / "configs" / "site" / "policy.yaml").read_text()
    for line in ("patient_count: hidden", "dataset_fingerprint: cohort", "allow_metrics: false"):
        assert f"\n{line} " in text
    assert "\nallow_insecure_noise: false " in text


def test_training_time_stays_at_the_site(tmp_path: Path) -> None:
    site = site_of(tmp_path, 24, example_policy(allow_metrics=True), NoisyCounts(0.0, 0.0))
    frames = answers(site)
    assert not [name for frame in frames for name in header(frame) if "seconds" in name or "time" in name]
    released = [line for line in audit_of(tmp_path) if line["decision"] == "released"]
    assert len(released) == 2
    assert all(line["seconds"] >= 0 for line in released)


def audit_of(folder: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
