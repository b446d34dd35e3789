"""The wire contract: what was encoded comes back, and nothing else is taken for a message."""

import json
import random
import struct

import pytest

from fedmed.errors import WireError
from fedmed.messages import (
    MAGIC,
    DescribeTask,
    LoraSpec,
    OptimizerSpec,
    PrivacySpec,
    Refusal,
    SiteInfo,
    TrainResult,
    TrainTask,
    decode,
    encode,
    peek,
)

TASK = TrainTask(
    run="r",
    round=1,
    rounds=5,
    config_sha256="c",
    base_model="b",
    base_sha256="s",
    method="fedavg",
    lora=LoraSpec(8, 16.0, ("language_model",), ("all-linear",)),
    init_seed=0,
    frozen_sha256="",
    trainable=("lora_A", "lora_B"),
    returned=("lora_A", "lora_B"),
    privacy=PrivacySpec("dp", 1.0, 0.1, 1.0, 4, 10, 1e-5),
    optimizer=OptimizerSpec("adamw", 1e-3, 0.9, 0.0, True),
    dtype="float32",
    precision="float32",
)
MESSAGES = [
    DescribeTask("r"),
    TASK,
    SiteInfo("r", "north", "0.1.0", 100, "f", 0.0, 4.0),
    TrainResult("r", 1, "north", "t", 100, 10, 1.5, 1e-5, 1.5, "f", 0.3),
    Refusal("r", 1, "north", "policy", "no", False),
]


def rewritten(frame: bytes, **changes: object) -> bytes:
    """The frame with keys of its header replaced, or removed where the value is None."""
    (length,) = struct.unpack(">I", frame[4:8])
    body = json.loads(frame[8 : 8 + length]) | changes
    header = json.dumps({key: value for key, value in body.items() if value is not None}).encode()
    return MAGIC + struct.pack(">I", len(header)) + header + frame[8 + length :]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
def test_round_trip(message: object) -> None:
    payload = b"adapter" if hasattr(message, "payload_sha256") else b""
    decoded, found = decode(encode(message, payload))
    assert type(decoded) is type(message)
    assert bytes(found) == payload
    assert encode(decoded, payload) == encode(message, payload)


def test_a_message_is_read_without_its_payload_but_not_from_less_than_its_header() -> None:
    frame = encode(TASK, b"payload")
    assert peek(frame[:-7])[0] == decode(frame)[0]
    with pytest.raises(WireError, match="cut off"):
        peek(frame[:-8])


@pytest.mark.parametrize("cut", [0, 3, 7, 8, 50, -1])
def test_a_cut_frame_is_refused(cut: int) -> None:
    with pytest.raises(WireError):
        decode(encode(TASK, b"payload")[:cut])


def test_a_flipped_payload_byte_is_noticed() -> None:
    frame = bytearray(encode(TASK, b"payload"))
    frame[-1] ^= 1
    with pytest.raises(WireError, match="damaged"):
        decode(bytes(frame))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"protocol": 1}, "protocol 1.*speaks 5"),
        ({"type": "pickle"}, "unknown message type"),
        ({"extra": 1}, "unknown keys.*extra"),
        ({"run": None}, "lacks the keys.*run"),
        ({"round": "1"}, "round is a str"),
        ({"round": True}, "round is a bool"),
        ({"trainable": "lora_A"}, "trainable is a str"),
        ({"trainable": [1]}, r"trainable\[0\] is a int"),
        ({"lora": {"rank": 8}}, "lora lacks"),
        ({"privacy": []}, "privacy is a list"),
    ],
)
def test_a_wrong_header_is_named(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(WireError, match=expected):
        decode(rewritten(encode(TASK), **changes))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 400])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    frame = encode(MESSAGES[3])
    (length,) = struct.unpack(">I", frame[4:8])
    header = frame[8 : 8 + length].replace(b'"epsilon":1.5', f'"epsilon":{number}'.encode())
    with pytest.raises(WireError):
        decode(MAGIC + struct.pack(">I", len(header)) + header)


def test_random_damage_never_raises_anything_else() -> None:
    chance = random.Random(0)
    frame = encode(TASK, b"payload")
    for _ in range(5000):
        damaged = bytearray(frame)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            decode(bytes(damaged[: chance.randint(0, len(damaged))]))
        except WireError:
            continue


def test_a_message_without_payload_takes_none() -> None:
    with pytest.raises(WireError):
        encode(DescribeTask("r"), b"x")
