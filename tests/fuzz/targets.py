"""The parsers under fuzz, each with valid inputs and with mutations that know its format.

| target   | what is damaged                                                    | what takes it                             |
| -------- | ------------------------------------------------------------------ | ----------------------------------------- |
| task     | the frame; its header, put back into a frame whose hash is right   | `decode`, then the site's policy          |
| site     | the same                                                           | `Site.handle`, which always answers       |
| result   | the same of a result, and its adapter                              | `check_reply` of the aggregator           |
| adapter  | safetensors bytes; their header, with lengths that fit             | `decode_state`                            |
| packed   | the same of bfloat16 and int8; the layout, deflated again; scales  | `decode_state`, of the encoding           |
| manifest | the lines of manifest.jsonl, as bytes and as JSON                  | `load_manifest`, from a file, with images |
| ledger   | journal and witness; the bodies of lines that are sealed as always | `reconcile`, then `Entries`               |
| config   | an experiment's plain values                                       | `parse_experiment`                        |
| turn     | a model's turn as text; its actions, and a dialogue, as JSON       | `read_turn`, `Dialogue.from_json`         |
| yaml     | the text of experiment, site and policy files                      | `parse_file` and `load_experiment`        |
| dicom    | a file of a series, of one frame or several; not compressed        | `DicomImport`, with a table and the gate  |

And one target for each reader of importers: a source in its real layout, of which one file is damaged.

| target    | file                                | importers                                                                   |
| --------- | ----------------------------------- | --------------------------------------------------------------------------- |
| rows      | JSON, JSON Lines                    | VQA-RAD, SLAKE, PubMedQA, MedQA                                             |
| tables    | CSV, TSV, JSON Lines                | tables and label files of a site's own, cases, PMC-VQA                      |
| reports   | JSON, CSV, JSON Lines               | IU X-Ray, MIMIC-CXR, findings and impression                                |
| dialogues | JSON, JSON Lines                    | LLaVA-Med (captions, conversations, questions, evaluation), MMedAgent       |
| npz       | npz: arrays, headers, the archive   | MedMNIST: two labels, eight, fourteen an image                              |
| parquet   | parquet: columns, values, bytes     | PathVQA                                                                     |
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from aggregator.rounds.tasks import check_reply
from fedmed.config import CONFIG_DIR, load_experiment, parse_experiment, to_dict
from fedmed.data.manifest import load_manifest, write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.errors import WireError
from fedmed.messages import DescribeTask, EvaluateTask, Refusal, TrainResult, TrainTask, decode, encode, sha256_hex
from fedmed.models.adapter import decode_state, encode_state
from fedmed.models.tensor_bytes import to_parts, to_tensors
from fedmed.typed import parse_file
from hospital_client.audit import Audit
from hospital_client.chain import Line, seal
from hospital_client.fakes import (
    EchoTrainer,
    example_cohort,
    example_evaluation,
    example_policy,
    example_task,
    journal_files,
    linear_epsilon,
)
from hospital_client.ledger import Entries, Ledger, Spending
from hospital_client.membership import pack
from hospital_client.policy import Policy, check_evaluation, check_task
from hospital_client.results import ResultStore
from hospital_client.settings import SiteSettings
from hospital_client.site import Site
from hospital_client.witness import JournalFiles, reconcile
from tests.fuzz.dicom_target import dicom_target
from tests.fuzz.importer_sources import LAYOUTS
from tests.fuzz.importer_target import importer_target
from tests.fuzz.mutate import dump, mutate_bytes, mutate_json
from tests.fuzz.target import Target
from tests.fuzz.turns import damaged_turn, parse_turn

KEY = b"k" * 32
PATIENTS = 57
STATE = {
    "model.layer.lora_A.weight": torch.arange(12.0).reshape(3, 4),
    "model.layer.lora_B.weight": torch.ones(5, 3),
    "model.projector.bias": torch.zeros(6),
}


def task_frames() -> list[bytes]:
    payload = encode_state(STATE, "float32")
    return [
        encode(example_task(), payload),
        encode(example_evaluation(), payload),
        encode(example_task(mode="none", rank=4), b""),
        encode(DescribeTask("r")),
    ]


def task_target() -> Target:
    frames, policy, measuring = task_frames(), example_policy(), example_policy(allow_metrics=True)

    def parse(frame: bytes) -> None:
        message, _ = decode(frame)
        if isinstance(message, TrainTask):
            check_task(policy, message, PATIENTS)
        if isinstance(message, EvaluateTask):
            check_evaluation(measuring, message, PATIENTS)

    return Target("task", lambda rng: damaged_frame(rng, frames), parse)


def site_target(folder: Path) -> Target:
    frames, files = task_frames(), journal_files(folder / "site")
    (folder / "site").mkdir()
    Ledger.create(files)
    ledger, audit = Ledger(files, linear_epsilon), Audit(folder / "site" / "audit.jsonl")
    results, policy = ResultStore(folder / "site" / "results"), example_policy()
    cohort = example_cohort(PATIENTS)
    site = Site("north", policy, cohort, ledger=ledger, audit=audit, results=results, trainer=EchoTrainer())

    def parse(frame: bytes) -> None:
        answer = site.handle(frame)
        try:
            message, _ = decode(answer)
        except WireError as error:
            raise AssertionError(f"the site answered with what is no frame: {error.message}") from error
        if isinstance(message, Refusal) and message.code == "failed":
            raise AssertionError("a fault inside the site, by a frame alone")

    return Target("site", lambda rng: damaged_frame(rng, frames), parse)


def result_target() -> Target:
    task = example_task(metrics_noise_multiplier=2.0)
    sent = sha256_hex(encode(task, encode_state(STATE, "float32")))
    result = TrainResult("run-1", 1, "north", sent, 57, 10, 0.5, 1e-5, 0.5, "f" * 64, 1.0, 2.0)
    frames = [encode(result, encode_state(STATE, dtype)) for dtype in ("float32", "bfloat16")]

    def parse(frame: bytes) -> None:
        check_reply(frame, task, sent, "north", STATE, STATE)

    return Target("result", lambda rng: damaged_frame(rng, frames, damaged_adapter), parse)


def adapter_target() -> Target:
    whole = [encode_state(STATE, dtype) for dtype in ("float32", "bfloat16")]
    return Target("adapter", lambda rng: damaged_adapter(rng, rng.choice(whole)), decode_state)


def packed_target() -> Target:
    whole = {dtype: encode_state(STATE, dtype) for dtype in ("bfloat16", "int8")}

    def make(rng: Random) -> tuple[str, bytes]:
        dtype = rng.choice(sorted(whole))
        damage = damaged_adapter if rng.random() < 0.4 else damaged_packing
        return dtype, damage(rng, whole[dtype])

    return Target("packed", make, lambda made: decode_state(made[1], made[0]))


def damaged_packing(rng: Random, payload: bytes) -> bytes:
    """The layout's JSON changed and deflated again, or other values and scales, in a file whose offsets fit."""
    tensors = to_tensors(payload)
    parts = {key: bytearray(tensor.view(torch.uint8).numpy().tobytes()) for key, tensor in tensors.items()}
    dtypes = {key: tensor.dtype for key, tensor in tensors.items()}
    if rng.random() < 0.6:
        text = dump(rng, mutate_json(rng, json.loads(zlib.decompress(parts["layout"]))))
        parts["layout"] = bytearray(zlib.compress(text))
    else:
        key = rng.choice(sorted(parts))
        parts[key] = bytearray(mutate_bytes(rng, bytes(parts[key]), [payload]))
    whole = {key: data[: len(data) - len(data) % dtypes[key].itemsize] for key, data in parts.items()}
    made = {
        key: torch.frombuffer(data, dtype=dtypes[key]) if data else torch.empty(0, dtype=dtypes[key])
        for key, data in whole.items()
    }
    return b"".join(to_parts(made))


def damaged_frame(
    rng: Random, frames: Sequence[bytes], damage_payload: Callable[[Random, bytes], bytes] | None = None
) -> bytes:
    """Bytes changed anywhere; or the header's JSON, or the payload, with lengths and hash that fit again."""
    frame = rng.choice(frames)
    if rng.random() < 0.3:
        return mutate_bytes(rng, frame, frames)
    (length,) = struct.unpack(">I", frame[4:8])
    header, payload = json.loads(frame[8 : 8 + length]), frame[8 + length :]
    if damage_payload is not None and rng.random() < 0.5:
        payload = damage_payload(rng, payload)
        header["payload_sha256"] = sha256_hex(payload)
    else:
        header = mutate_json(rng, header)
    text = dump(rng, header)
    return frame[:4] + struct.pack(">I", len(text)) + text + payload


def damaged_adapter(rng: Random, payload: bytes) -> bytes:
    """safetensors: length of the header as eight bytes, its JSON, the numbers."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, payload, [payload])
    (length,) = struct.unpack("<Q", payload[:8])
    header, numbers = json.loads(payload[8 : 8 + length]), payload[8 + length :]
    if rng.random() < 0.5:
        text = dump(rng, mutate_json(rng, header))
    else:
        entry = header[rng.choice(sorted(header))]
        entry.update(rng.choice(_TENSOR_CHANGES)(rng, entry))
        text = dump(rng, header)
    if rng.random() < 0.3:
        numbers = mutate_bytes(rng, numbers, [payload])
    return struct.pack("<Q", len(text)) + text + numbers


_TENSOR_CHANGES: tuple[Callable[[Random, dict[str, Any]], dict[str, Any]], ...] = (
    lambda rng, entry: {"dtype": rng.choice(["F64", "I8", "BOOL", "F8_E4M3", "BF16", "F16", "U64", "C64", "X"])},
    lambda rng, entry: {"shape": rng.choice([[], [0], [2**62, 2**62], [12], [1] * 400, [3, 2, 2], [0, 4]])},
    lambda rng, entry: {"data_offsets": [rng.choice([0, 1, 2**63, 48]), rng.choice([0, 1, 48, 2**64 - 1])]},
)


def manifest_target(folder: Path) -> Target:
    whole = write_manifest(folder, phantom_examples(3, 0, domain="hospital", split="train"))
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)[:4]
    assert whole.num_patients == 3

    def make(rng: Random) -> bytes:
        if rng.random() < 0.3:
            return mutate_bytes(rng, b"".join(lines), lines)
        chosen = [rng.choice(lines) for _ in range(rng.randint(1, 3))]
        place = rng.randrange(len(chosen))
        chosen[place] = dump(rng, mutate_json(rng, json.loads(chosen[place])), ensure_ascii=rng.random() < 0.5) + b"\n"
        return b"".join(chosen)

    def parse(data: bytes) -> None:
        (folder / "manifest.jsonl").write_bytes(data)
        load_manifest(folder).pseudonyms(KEY)

    return Target("manifest", make, parse)


def ledger_target() -> Target:
    files = JournalFiles(Path("ledger.jsonl"), Path("witness/ledger.jsonl"), KEY)
    spending = Spending("north", "run-1", 1, "0" * 64, 1.0, 0.1, 10, 1e-5)
    bodies: list[dict[str, Any]] = [
        {
            "kind": "cohort",
            "cohort": "north",
            "fingerprint": "f",
            "members": pack(frozenset([b"12345678", b"abcdefgh"])),
        },
        {"kind": "reserve", "fingerprint": "f", **dataclasses.asdict(spending)},
        {"kind": "commit", "reservation": 2, "result_sha256": "1" * 64},
        {"kind": "reserve", "fingerprint": "f", **dataclasses.asdict(spending), "round": 2},
    ]
    whole = sealed(bodies)

    def make(rng: Random) -> tuple[bytes, bytes]:
        if rng.random() < 0.5:  # lines with the right seals, whose content no release wrote
            changed = [mutate_json(rng, body) if rng.random() < 0.4 else body for body in bodies]
            try:
                journal = sealed(changed)
            except (TypeError, ValueError, AttributeError):  # NaN, or not an object: no release could seal it
                journal = whole
        else:
            journal = mutate_bytes(rng, whole, [whole])
        witness = journal if rng.random() < 0.6 else mutate_bytes(rng, whole, [journal])
        return journal, witness

    def parse(both: tuple[bytes, bytes]) -> None:
        entries = Entries(reconcile(*both, files).lines, lambda events, delta: float(len(events)))
        entries.check(spending, 99.0, 1e-5)
        entries.epsilon("north", 1e-5)

    return Target("ledger", make, parse)


def sealed(bodies: Sequence[dict[str, Any]]) -> bytes:
    lines: list[Line] = []
    data = b""
    for body in bodies:
        line, piece = seal(KEY, body, lines)
        lines.append(line)
        data += piece
    return data


def config_target() -> Target:
    plain = to_dict(load_experiment("demo"))
    return Target("config", lambda rng: mutate_json(rng, plain), parse_experiment)


def yaml_target(folder: Path) -> Target:
    texts = {
        name: without_comments((CONFIG_DIR / "site" / file).read_bytes())
        for name, file in (("policy", "policy.yaml"), ("site", "example.yaml"))
    }
    texts["experiment"] = without_comments((CONFIG_DIR / "experiment" / "demo.yaml").read_bytes())
    parsers: dict[str, Callable[[Path], object]] = {
        "policy": partial(parse_file, Policy, hint=""),
        "site": partial(parse_file, SiteSettings, hint=""),
        "experiment": lambda path: load_experiment(str(path)),
    }

    def make(rng: Random) -> tuple[str, bytes]:
        name = rng.choices(list(texts), [50, 48, 2])[0]  # an experiment is merged with base.yaml, which takes 30 ms
        lines = texts[name].splitlines(keepends=True)
        if rng.random() < 0.9:  # a few keys: YAML is slow to read
            start = rng.randrange(len(lines))
            lines = lines[start : start + rng.randint(1, 4)]
        return name, mutate_bytes(rng, b"".join(lines), list(texts.values()))

    def parse(made: tuple[str, bytes]) -> None:
        path = folder / "input.yaml"
        path.write_bytes(made[1])
        parsers[made[0]](path)

    return Target("yaml", make, parse)


def without_comments(text: bytes) -> bytes:
    lines = [line.split(b"#")[0].rstrip() for line in text.splitlines()]
    return b"".join(line + b"\n" for line in lines if line)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "task": lambda folder: task_target(),
    "site": site_target,
    "result": lambda folder: result_target(),
    "adapter": lambda folder: adapter_target(),
    "packed": lambda folder: packed_target(),
    "manifest": manifest_target,
    "ledger": lambda folder: ledger_target(),
    "config": lambda folder: config_target(),
    "turn": lambda folder: Target("turn", damaged_turn, parse_turn),
    "yaml": yaml_target,
    "dicom": dicom_target,
    **{reader: importer_target(reader) for reader in LAYOUTS},
}
