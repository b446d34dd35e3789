"""Adapters as bytes: what each encoding keeps, what a hostile payload meets, and error feedback over rounds."""

from __future__ import annotations

import json
import struct
import zlib

import pytest
import torch
from safetensors.torch import load, save

from fedmed.errors import ModelError, WireError
from fedmed.models.encoding import State, add_change, decode_state, encode_change, encode_state
from fedmed.models.tensor_bytes import to_parts, to_tensors

SHAPES = {
    "m.one.lora_A.weight": (8, 96),
    "m.one.lora_B.weight": (128, 8),
    "m.conv.lora_A.weight": (4, 3, 5, 5),
    "m.conv.lora_B.weight": (16, 4, 1, 1),
    "m.embed.lora_embedding_A": (4, 50),
    "m.square.lora_R.weight": (6, 6),
    "m.norm.weight": (7,),
}


def drawn(seed: int = 0, size: float = 1.0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {key: size * torch.randn(shape, generator=generator) for key, shape in sorted(SHAPES.items())}


def packed(**changes: object) -> bytes:
    """An int8 payload of one tensor [3, 2], with some of its tensors replaced, or left out where the value is None."""
    layout = changes.pop("layout_text", '[["m.lora_B.weight",[3,2]]]')
    tensors: dict[str, object] = {
        "values": torch.tensor([1, 2, 3, 4, 5, 127], dtype=torch.int8),
        "scales": torch.tensor([0.5, 2.0]),
        "layout": torch.tensor(list(zlib.compress(str(layout).encode())), dtype=torch.uint8),
        **changes,
    }
    return save({key: value for key, value in tensors.items() if isinstance(value, torch.Tensor)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_an_encoding_keeps_keys_shapes_and_values_to_half_a_step(dtype: str) -> None:
    state = drawn()
    decoded = decode_state(memoryview(encode_state(dict(reversed(state.items())), dtype)), dtype)
    assert list(decoded) == sorted(state)
    for key, value in state.items():
        step = {"float32": 0.0, "bfloat16": 2.0**-7, "int8": 1 / 127}[dtype] * value.abs().max()
        assert decoded[key].shape == value.shape
        assert decoded[key].dtype == torch.float32
        assert (decoded[key] - value).abs().max() <= step / 2 * (1 + 1e-5)


def test_int8_has_a_scale_for_each_rank() -> None:
    weight = torch.ones(100, 4) * torch.tensor([1e-6, 1.0, 1e3, 0.0])
    decoded = decode_state(encode_state({"m.lora_B.weight": weight, "m.lora_A.weight": weight.T}, "int8"))
    torch.testing.assert_close(decoded["m.lora_B.weight"], weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(decoded["m.lora_A.weight"], weight.T, rtol=1e-6, atol=0)


def test_rounding_is_half_to_even_and_the_same_each_time() -> None:
    weight = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0]])
    state = {"m.lora_A.weight": weight}
    assert decode_state(encode_state(state, "int8"))["m.lora_A.weight"].tolist() == [[127, 0, 2, 2, 0, -2, -127]]
    assert encode_state(state, "int8") == encode_state(state, "int8")


def test_the_smallest_and_the_largest_numbers_survive() -> None:
    for size in (1e-45, 1e-40, 3e38):
        weight = torch.full((2, 3), size)
        decoded = decode_state(encode_state({"m.lora_A.weight": weight}, "int8"))["m.lora_A.weight"]
        assert bool(decoded.isfinite().all())
        assert float((decoded - weight).abs().max()) <= max(size * 1e-5, 1e-40)


@pytest.mark.parametrize(("dtype", "bytes_each"), [("bfloat16", 2), ("int8", 1)])
def test_the_overhead_of_many_small_tensors_is_small(dtype: str, bytes_each: int) -> None:
    state = {f"model.layers.{i}.attention.projection.lora_B.weight": torch.randn(96, 8) for i in range(40)}
    numbers = 40 * 96 * 8
    scales = 4 * 8 * 40 if dtype == "int8" else 0
    assert len(encode_state(state, dtype)) <= bytes_each * numbers + scales + 800


def test_what_rounding_lost_comes_with_the_next_rounds() -> None:
    """After n rounds of equal changes what arrived differs from what was meant by the last loss alone, not by n of them."""
    step = drawn(size=1e-3)
    sent = drawn(seed=1)
    arrived = {key: torch.zeros_like(value) for key, value in step.items()}
    lost: State = {}
    for _ in range(20):
        payload, lost = encode_change(sent, {key: sent[key] + step[key] for key in sent}, lost, "int8")
        for key, value in decode_state(payload).items():
            arrived[key] += value
    for key, value in step.items():
        meant = 20 * ((sent[key] + value) - sent[key])
        torch.testing.assert_close(arrived[key] + lost[key], meant, rtol=0, atol=2e-6)
        assert float(lost[key].abs().max()) <= 1.1 * float(value.abs().max()) / 127


def test_without_feedback_a_change_below_half_a_step_would_never_arrive() -> None:
    change = torch.tensor([[1.0] + [1 / 400] * 5])
    sent, lost, arrived = {"m.lora_A.weight": torch.zeros(1, 6)}, {}, torch.zeros(1, 6)
    for _ in range(40):
        payload, lost = encode_change(sent, {"m.lora_A.weight": change}, lost, "int8")
        arrived += decode_state(payload)["m.lora_A.weight"]
        assert float(decode_state(encode_state({"m.lora_A.weight": change}, "int8"))["m.lora_A.weight"][0, 1]) == 0
    torch.testing.assert_close(arrived[0, 1:], torch.full((5,), 0.1), rtol=0, atol=0.005)


def test_the_aggregator_adds_the_change_to_what_was_never_rounded() -> None:
    state, trained = drawn(), drawn(seed=2)
    received = decode_state(encode_state(state, "int8"))
    payload, _ = encode_change(received, trained, {}, "bfloat16")
    seen = add_change(state, decode_state(payload))
    for key, value in seen.items():
        expected = state[key] + (trained[key] - received[key])
        torch.testing.assert_close(value, expected, rtol=2.0**-7, atol=2.0**-7)


def test_a_loss_of_another_shape_is_left_out() -> None:
    state = {"m.lora_A.weight": torch.ones(2, 4)}
    payload, _ = encode_change(state, state, {"m.lora_A.weight": torch.ones(4, 4)}, "int8")
    assert decode_state(payload)["m.lora_A.weight"].abs().max() == 0


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (packed(scales=None), "bfloat16 or int8"),
        (packed(values=None), "not an adapter's"),
        (packed(layout=None), "not an adapter's"),
        (packed(scales=torch.tensor([0.5, float("nan")])), "scale"),
        (packed(scales=torch.tensor([0.5, float("inf")])), "scale"),
        (packed(scales=torch.tensor([0.5, -1.0])), "scale"),
        (packed(scales=torch.tensor([0.5])), "scales: 1 are left"),
        (packed(scales=torch.tensor([0.5, 1.0, 1.0])), "belong to no tensor"),
        (packed(scales=torch.tensor([[0.5, 1.0]])), "axes"),
        (packed(scales=torch.tensor([0.5, 1.0], dtype=torch.bfloat16)), "bfloat16"),
        (packed(values=torch.zeros(5, dtype=torch.int8)), "values are left"),
        (packed(values=torch.zeros(7, dtype=torch.int8)), "belong to no tensor"),
        (packed(values=torch.zeros(6)), "float32"),
        (packed(values=torch.zeros(3, 2, dtype=torch.int8)), "axes"),
        (packed(values=torch.full((6,), -128, dtype=torch.int8)), "below -127"),
        (packed(layout=torch.zeros(5, dtype=torch.uint8)), "layout"),
        (packed(layout_text='[["m.lora_B.weight",[3,2.0]]]'), "layout"),
        (packed(layout_text='[["m.lora_B.weight",[-3,-2]]]'), "layout"),
        (packed(layout_text='[["m.lora_B.weight",[true,6]]]'), "layout"),
        (packed(layout_text='[["m.lora_B.weight",[3,1]],["m.lora_B.weight",[3,1]]]'), "layout"),
        (packed(layout_text='[["m.lora_C.weight",[3,1]],["m.lora_B.weight",[3,1]]]'), "layout"),
        (packed(layout_text='{"m.lora_B.weight":[3,2]}'), "layout"),
        (packed(layout_text="[" * 100_000), "layout"),
        (packed(layout_text='[["../m",[3,2]]]'), "not an adapter's"),
        (packed(layout_text=f'[["m.lora_B.weight",[3,2{"0" * 5000}]]]'), "layout"),
        (packed(layout_text='[["m.lora_B.weight",[3,2]]]' + " " * (1 << 25)), "layout"),
    ],
)
def test_a_malformed_payload_is_named(payload: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode_state(payload)


def test_a_payload_in_another_encoding_than_asked_for_is_refused() -> None:
    with pytest.raises(WireError, match="travels as bfloat16, expected int8"):
        decode_state(encode_state(drawn(), "bfloat16"), "int8")


def test_a_product_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ModelError, match=r"m\.lora_B\.weight.*not finite"):
        decode_state(packed(scales=torch.tensor([0.5, 3e38])))


def test_what_is_not_finite_or_of_no_encoding_is_not_sent() -> None:
    with pytest.raises(ModelError, match=r"m\.lora_A\.weight.*not finite"):
        encode_state({"m.lora_A.weight": torch.tensor([[float("nan")]])}, "int8")
    with pytest.raises(ModelError, match="int4"):
        encode_state(drawn(), "int4")


def test_the_bytes_are_the_safetensors_librarys() -> None:
    tensors = {
        **drawn(),
        "half": torch.randn(3, 3).to(torch.bfloat16),
        "small": torch.arange(5, dtype=torch.int8),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "turned": torch.randn(4, 6).T,
        "empty": torch.empty(0, 3),
    }
    written = b"".join(to_parts(tensors))
    assert written == save({key: tensor.contiguous() for key, tensor in tensors.items()})
    for found in (load(written), to_tensors(written)):
        assert set(found) == set(tensors)
        assert all(
            torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype for key, tensor in tensors.items()
        )


def test_float32_is_read_and_written_without_a_copy() -> None:
    state = drawn()
    pieces = to_parts(state)
    data = bytearray(b"".join(pieces))
    read = to_tensors(data)
    assert state["m.norm.weight"].data_ptr() in {_address(piece) for piece in pieces[1:]}
    data[-4:] = struct.pack("<f", 42.0)
    last = max(read.values(), key=lambda tensor: tensor.data_ptr())
    assert last.flatten()[-1] == 42.0


def test_numbers_that_begin_anywhere_are_read() -> None:
    state = drawn()
    data = encode_state(state, "float32")
    for shift in range(1, 4):
        read = decode_state(memoryview(b"x" * shift + data)[shift:])
        assert all(torch.equal(read[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "does not fit"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, "does not fit"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "does not fit"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "belong to no tensor"),
        ({k: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for k in "ab"}, "does not fit"),
        ({"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, "F64"),
        ({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, "dtype"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, "none"),
        ({"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, "none"),
        ({"a": {"dtype": "F32", "shape": [1] * 9 + [2], "data_offsets": [0, 8]}}, "none"),
        ({"a": {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]}}, "none"),
        ({"a": {"dtype": "F32", "shape": [0, 1 << 62, 8], "data_offsets": [0, 0]}}, "none"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 10**30]}}, "none"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "described"),
        ({"a": 3}, "described"),
        (["a"], "not safetensors"),
    ],
)
def test_a_wrong_header_is_named(header: object, words: str) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(WireError, match=words):
        to_tensors(struct.pack("<Q", len(text)) + text + b"\0" * 8)


def _address(piece: bytes | memoryview) -> int:
    return 0 if isinstance(piece, bytes) else torch.frombuffer(piece, dtype=torch.uint8).data_ptr()
