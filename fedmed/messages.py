"""The wire contract between aggregator, relay and site daemon: sole owner of its keys. Knows no torch.

A frame is one message: a canonical JSON header, typed and versioned, then an opaque payload (the adapter's
safetensors bytes). The relay and Flower pass frames through as bytes; the two ends alone look inside.

    aggregator --DescribeTask|TrainTask|EvaluateTask--> relay --> site daemon
    aggregator <--SiteInfo|TrainResult|EvaluateResult|Refusal-- relay <-- site daemon

    frame := b"FEDM" | u32 header length | header JSON | payload          (integers big endian)

    >>> frame = encode(DescribeTask(run="r1"))
    >>> decode(frame)[0]
    DescribeTask(run='r1')

| received                                | what happens                                          |
| --------------------------------------- | ----------------------------------------------------- |
| other magic, short frame, broken JSON   | WireError, nothing is guessed                         |
| another protocol version                | WireError naming both versions                        |
| unknown type, unknown or missing key    | WireError naming the key                              |
| payload whose SHA-256 is not the header's | WireError: damaged on the way                       |
| NaN or infinity in the header           | WireError                                             |
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fedmed.errors import WireError
from fedmed.message_fields import build, read_object
from fedmed.specs import ENCODINGS as ENCODINGS
from fedmed.specs import LoraSpec as LoraSpec
from fedmed.specs import OptimizerSpec as OptimizerSpec
from fedmed.specs import PrivacySpec as PrivacySpec
from fedmed.specs import ReleaseSpec as ReleaseSpec
from fedmed.specs import Selection as Selection

PROTOCOL = 5
MAGIC = b"FEDM"
MAX_HEADER_BYTES = 1 << 20
HEAD_BYTES = 8 + MAX_HEADER_BYTES  # of a frame: its message, without the payload
# Flower's RecordDict: the frame travels as the only Array of this ArrayRecord, as raw bytes.
RECORD_KEY = "fedmed"
ARRAY_KEY = "frame"
ARRAY_STYPE = "fedmed.frame"


@dataclass(frozen=True, slots=True)
class DescribeTask:
    """Asks a site who it is and whether it can take part; touches no data beyond the manifest's counts."""

    type: ClassVar[str] = "describe"
    run: str


@dataclass(frozen=True, slots=True)
class TrainTask:
    """Train the incoming adapter for one round. Payload: the global adapter's travelling tensors (safetensors).

    Attributes:
        run, round, rounds: run identifier; this round, from 1; rounds planned in all.
        config_sha256: of the experiment's resolved configuration.
        base_model, base_sha256: name and hash of the frozen model; the site loads its own copy and compares.
        method: entry of the aggregation table, for the site's policy.
        init_seed: public seed that draws the adapter's first A matrices, the same at every site.
        frozen_sha256: hash of the tensors that do not travel down but follow from `init_seed`; empty when all travel.
        trainable: kinds of adapter tensors (fedmed.models.kinds) that the site trains.
        returned: those of them that the site sends up. The others are personal: it keeps them, trained further every
            round of the run, and they never leave.
        dtype: of the tensors on the wire in both directions: an encoding of fedmed.models.encoding. Training is in float32.
        precision: float32, or bfloat16 for autocast of the frozen model.
        parts: of lora.parts, those trained in this round; empty trains all. The others' tensors come back as they came.
        selection: of the records.
        payload_sha256: of the payload; filled in by `encode`.
    """

    type: ClassVar[str] = "train"
    run: str
    round: int
    rounds: int
    config_sha256: str
    base_model: str
    base_sha256: str
    method: str
    lora: LoraSpec
    init_seed: int
    frozen_sha256: str
    trainable: tuple[str, ...]
    returned: tuple[str, ...]
    privacy: PrivacySpec
    optimizer: OptimizerSpec
    dtype: str
    precision: str
    parts: tuple[str, ...] = ()
    selection: Selection = Selection()  # noqa: RUF009  frozen
    payload_sha256: str = ""


@dataclass(frozen=True, slots=True)
class EvaluateTask:
    """Score an adapter on the site's held-out patients. Payload: as TrainTask's.

    Attributes:
        run, config_sha256, base_model, base_sha256, lora, init_seed, frozen_sha256, dtype: as in TrainTask.
        round: the adapter is the one after this round.
        personal: kinds of adapter tensors that are the site's own, as its last round of the run left them.
        privacy: of the one release.
        scores: names of fedmed.privacy.patient_scores.SCORES.
        max_new_tokens: at most so many tokens an answer, which is greedy.
    """

    type: ClassVar[str] = "evaluate"
    run: str
    round: int
    config_sha256: str
    base_model: str
    base_sha256: str
    lora: LoraSpec
    init_seed: int
    frozen_sha256: str
    personal: tuple[str, ...]
    dtype: str
    privacy: ReleaseSpec
    scores: tuple[str, ...]
    max_new_tokens: int
    payload_sha256: str = ""


@dataclass(frozen=True, slots=True)
class SiteInfo:
    """Answer to DescribeTask. `num_patients` is as the site's policy releases it, 0 where it is not told: then all
    sites weigh the same. `dataset_fingerprint` is a hash under a key that never leaves the site, of the cohort's name or,
    where the policy says so, of the data."""

    type: ClassVar[str] = "site_info"
    run: str
    site: str
    version: str
    num_patients: int
    dataset_fingerprint: str
    epsilon_spent: float
    epsilon_budget: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """One trained round. Payload: the trained adapter tensors, or what changed of them (fedmed.models.encoding). Where the
    privacy of every field comes from: hospital_client/release.py and docs/privacy.md.

    Attributes:
        task_sha256: of the task frame that this answers: a result is idempotent by it.
        num_patients: as in SiteInfo; the aggregation weight.
        epsilon, delta: spent by this run at this site so far, this round included.
        epsilon_total: the most that any patient of this site lost over all runs and cohorts. `inf` travels as -1 when a round
            without privacy was run.
        noisy_correct, noisy_patients: of the incoming adapter's evaluation, where the task asked for it, else 0.0: patients
            drawn, and the sum over them of the share of records answered right, each with noise (fedmed.privacy.counts).
    """

    type: ClassVar[str] = "train_result"
    run: str
    round: int
    site: str
    task_sha256: str
    num_patients: int
    steps: int
    epsilon: float
    delta: float
    epsilon_total: float
    dataset_fingerprint: str
    noisy_correct: float = 0.0
    noisy_patients: float = 0.0
    payload_sha256: str = ""


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """How the adapter did on the held-out patients, as sums that may leave (fedmed.privacy.patient_scores).

    Attributes:
        task_sha256: of the task frame that this answers: a result is idempotent by it.
        noisy_sums: for each of the task's scores, the sum over patients of their mean score, with noise.
        noisy_weights: for each group of those scores, the patients that have such items, with noise.
    """

    type: ClassVar[str] = "evaluate_result"
    run: str
    round: int
    site: str
    task_sha256: str
    scores: tuple[str, ...]
    noisy_sums: tuple[float, ...]
    noisy_weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The site did not do it. `code` is a code of fedmed.errors, or `failed` for a fault inside the site, whose kind and
    details stay there; `retry`: whether the same task may succeed later."""

    type: ClassVar[str] = "refusal"
    run: str
    round: int
    site: str
    code: str
    message: str
    retry: bool


Message = DescribeTask | TrainTask | EvaluateTask | SiteInfo | TrainResult | EvaluateResult | Refusal
_TYPES: dict[str, type[Any]] = {cls.type: cls for cls in typing.get_args(Message)}


def sha256_hex(data: bytes | memoryview) -> str:
    """SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(pieces: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of bytes that come in pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def encode(message: Message, payload: bytes | memoryview | Sequence[bytes | memoryview] = b"") -> bytes:
    """One frame; the payload may come in pieces, which are copied once. `payload_sha256` is filled in where there is one."""
    pieces = [payload] if isinstance(payload, bytes | bytearray | memoryview) else payload
    if hasattr(message, "payload_sha256"):
        message = dataclasses.replace(typing.cast(Any, message), payload_sha256=sha256_of(pieces))
    elif size := sum(map(len, pieces)):
        raise WireError(f"a {message.type} message carries no payload, got {size} bytes")
    body = {"protocol": PROTOCOL, "type": message.type, **dataclasses.asdict(message)}
    try:
        header = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as error:
        raise WireError(f"a {message.type} message holds a number that is not finite") from error
    header += b" " * (-(8 + len(header)) % 8)  # so that a payload's numbers begin where the processor wants them
    return b"".join([MAGIC, struct.pack(">I", len(header)), header, *pieces])


def decode(frame: bytes | memoryview) -> tuple[Message, memoryview]:
    """The message and its payload (a view into `frame`, not a copy).

    Raises:
        WireError: for anything that `encode` of this version would not have written.
    """
    message, payload = peek(frame)
    expected = getattr(message, "payload_sha256", sha256_hex(b""))
    if sha256_hex(payload) != expected:
        raise WireError(
            f"payload of the {message.type} message is damaged: {len(payload)} bytes with SHA-256 "
            f"{sha256_hex(payload)[:12]}, expected {expected[:12]}",
            "send it again; if it happens twice, look at the network between site and aggregator",
        )
    return message, payload


def peek(frame: bytes | memoryview) -> tuple[Message, memoryview]:
    """As `decode`, without looking at the payload, which may be damaged or cut off: HEAD_BYTES of a frame are enough for it."""
    view = memoryview(frame)
    if len(view) < 8 or bytes(view[:4]) != MAGIC:
        raise WireError(f"not a FedMed frame: {len(view)} bytes that do not begin with {MAGIC.decode()}")
    (length,) = struct.unpack(">I", view[4:8])
    if length > MAX_HEADER_BYTES or 8 + length > len(view):
        raise WireError(f"frame of {len(view)} bytes is cut off or its header length {length} is wrong")
    return _parse_header(bytes(view[8 : 8 + length])), view[8 + length :]


def _parse_header(raw: bytes) -> Message:
    body = read_object(raw)
    protocol = body.pop("protocol", None)
    if protocol != PROTOCOL:
        raise WireError(
            f"the peer speaks wire protocol {protocol!r}, this side speaks {PROTOCOL}",
            "install the same FedMed release on both sides",
        )
    kind = body.pop("type", None)
    if not isinstance(kind, str) or kind not in _TYPES:
        raise WireError(f"unknown message type {kind!r}, expected one of {sorted(_TYPES)}")
    message: Message = build(_TYPES[kind], body, kind)
    return message
