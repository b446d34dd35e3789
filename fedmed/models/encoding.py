"""How adapter tensors travel: float32, or rounded to bfloat16 or int8, and how what rounding loses is made up for.

    State -> encode_state -> safetensors bytes -> decode_state -> State in float32

    down: Q(state).  The site trains from there.  up: change = trained - received + lost; Q(change); lost = change - Q(change).
    The aggregator adds Q(change) to its own state, which was never rounded.

float32 travels as it is: all tensors, up and down. With the others a site returns its change, which is smaller than the tensors and
so loses less. With int8 it keeps what rounding still lost for its next round: error feedback (Seide et al., Interspeech 2014;
Karimireddy et al., arXiv 1901.09847). All of it is done to what has its noise already: it costs no privacy.

| encoding | a number is                                                                                    | bytes |
| -------- | ---------------------------------------------------------------------------------------------- | ----- |
| float32  | itself                                                                                         | 4     |
| bfloat16 | rounded to 8 significant bits                                                                   | 2     |
| int8     | q scale, q from -127 to 127 rounded half to even; a scale for each rank of A and B: the largest | 1     |
|          | magnitude along it / 127                                                                       |       |

float32 is a plain safetensors file, a tensor for a key. The others are one as well, with these tensors:

| tensor   | holds                                                                                        |
| -------- | -------------------------------------------------------------------------------------------- |
| `values` | all numbers, tensor after tensor in the order of `layout`                                    |
| `scales` | float32, for int8 alone: the scales, likewise                                                |
| `layout` | deflated JSON [[key, shape], ...], sorted: names are as large as the tensors of a small model |

| payload                                                          | what happens                       |
| ---------------------------------------------------------------- | ---------------------------------- |
| not safetensors, another encoding than asked for                 | WireError                          |
| no or other layout, too many or few values or scales             | WireError                          |
| a scale that is negative, NaN or infinite; q = -128              | WireError                          |
| a key or number of axes that no adapter has                      | WireError                          |
| a value that is not finite                                       | ModelError naming the tensor       |
| int8 of a tensor that is not finite                              | ModelError naming the tensor       |
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedmed.errors import ModelError, WireError
from fedmed.messages import ENCODINGS
from fedmed.models.kinds import SAVED, kind_of
from fedmed.models.tensor_bytes import is_shape, to_parts, to_tensors

State = dict[str, Tensor]
MAX_LAYOUT_BYTES = 1 << 24
_KEY = re.compile(r"\w+(\.\w+)+", re.ASCII)
_LORA_AXES = (2, 4, 5)  # of linear layers and embeddings, Conv2d, Conv3d
_PACKED = {"values", "layout"}, {"values", "layout", "scales"}
_LIMIT = 127


def sends_changes(dtype: str) -> bool:
    """Whether a site returns what it changed instead of what it trained."""
    return dtype != "float32"


def feeds_back(dtype: str) -> bool:
    """Whether a site keeps what rounding lost for its next round. bfloat16 loses a 500th of a change: not worth a file."""
    return dtype == "int8"


def encode_state(state: Mapping[str, Tensor], dtype: str) -> bytes:
    """`encode_parts` in one piece."""
    return b"".join(encode_parts(state, dtype))


def encode_parts(state: Mapping[str, Tensor], dtype: str) -> list[bytes | memoryview]:
    """safetensors bytes in `dtype`, equal for equal states; in pieces that for float32 are views of the tensors.

    Raises:
        ModelError: no such encoding, or int8 of a value that is not finite.
    """
    if dtype not in ENCODINGS:
        raise ModelError(f"wire dtype={dtype!r}: expected one of {', '.join(ENCODINGS)}")
    tensors = {key: state[key].detach().to("cpu", torch.float32) for key in sorted(state)}
    if dtype == "float32":
        return to_parts(tensors)
    layout = json.dumps([[key, list(tensor.shape)] for key, tensor in tensors.items()], separators=(",", ":"))
    packed = {"layout": torch.frombuffer(bytearray(zlib.compress(layout.encode(), 9)), dtype=torch.uint8)}
    if dtype == "bfloat16":
        packed["values"] = _join((tensor.to(torch.bfloat16) for tensor in tensors.values()), torch.bfloat16)
    else:
        _check_finite(tensors)
        rounded = [_round(tensor) for tensor in tensors.values()]
        packed["values"] = _join((values for values, _ in rounded), torch.int8)
        packed["scales"] = _join((scales for _, scales in rounded), torch.float32)
    return to_parts(packed)


def decode_state(payload: bytes | memoryview, dtype: str = "") -> State:
    """A state in float32 from what `encode_state` wrote, sorted by key; of float32, views of `payload`: not to be written to.

    Args:
        dtype: the encoding that was asked for; empty takes any.

    Raises:
        WireError, ModelError: see the module's last table. The caller compares keys and shapes.
    """
    tensors = to_tensors(payload)
    packed = set(tensors) in _PACKED
    found = "float32" if not packed else "int8" if "scales" in tensors else "bfloat16"
    if dtype and found != dtype:
        raise WireError(f"the adapter travels as {found}, expected {dtype}")
    state = tensors if not packed else _unpack(tensors)
    for key, tensor in state.items():
        axes = (1, *_LORA_AXES) if kind_of(key) == SAVED else _LORA_AXES
        if not _KEY.fullmatch(key) or tensor.dtype != torch.float32 or tensor.dim() not in axes:
            raise WireError(f"tensor {key[:200]!r} ({tensor.dtype}, {tensor.dim()} axes) is not an adapter's")
    _check_finite(state)
    return state


def encode_change(
    received: Mapping[str, Tensor], trained: Mapping[str, Tensor], lost: Mapping[str, Tensor], dtype: str
) -> tuple[bytes, State]:
    """What a site returns, and what rounding lost of it: the `lost` of its next round, empty where nothing is fed back.

    Args:
        received: what it was sent, decoded; holds every tensor of `trained`.
        lost: of the round before; tensors that it lacks, or has in another shape, lost nothing.
    """
    change = {key: trained[key] - received[key] for key in trained}
    for key, tensor in change.items():
        if key in lost and lost[key].shape == tensor.shape:
            tensor.add_(lost[key])
    payload = encode_state(change, dtype)
    if not feeds_back(dtype):
        return payload, {}
    taken = decode_state(payload)
    return payload, {key: tensor - taken[key] for key, tensor in change.items()}


def add_change(sent: Mapping[str, Tensor], change: State) -> State:
    """What a site trained, from the change that it returned; writes over `change`, whose keys and shapes `sent` has."""
    for key, tensor in change.items():
        tensor.add_(sent[key])
    return change


def _channels(tensor: Tensor) -> Tensor:
    """`tensor` [c, n] with the rank first: the shorter of the first two axes. One scale for each of its rows."""
    if tensor.dim() < 2:
        return tensor.reshape(1, -1)
    first = tensor.movedim(1, 0) if tensor.shape[1] < tensor.shape[0] else tensor
    return first.reshape(first.shape[0], -1)


def _round(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """q [c, n] in int8 and scale [c] of a float32 tensor."""
    rows = _channels(tensor)
    scales = rows.abs().amax(dim=1) / _LIMIT
    ratios = rows / scales.where(scales > 0, 1.0)[:, None]
    return ratios.round_().clamp_(-_LIMIT, _LIMIT).to(torch.int8), scales


def _unpack(tensors: Mapping[str, Tensor]) -> State:
    """The tensors that `values` and `scales` hold, all of them and nothing else."""
    values, scales = tensors["values"], tensors.get("scales")
    if values.dtype != (torch.bfloat16 if scales is None else torch.int8) or values.dim() != 1:
        raise WireError(f"adapter values are {values.dtype} with {values.dim()} axes, expected bfloat16 or int8 with 1")
    if scales is not None:
        _check_scales(values, scales)
    state: State = {}
    taken = rows = 0
    for key, shape in _layout(tensors["layout"]):
        size = math.prod(shape)
        if size > len(values) - taken:
            raise WireError(f"adapter tensor {key[:200]!r} of {size} numbers: {len(values) - taken} values are left")
        own = values[taken : taken + size].to(torch.float32)
        taken += size
        if scales is not None:
            channels = _channels_of(shape)
            if channels > len(scales) - rows:
                raise WireError(f"adapter tensor {key[:200]!r} has {channels} scales: {len(scales) - rows} are left")
            own = _scale(own, scales[rows : rows + channels], shape)
            rows += channels
        state[key] = own.reshape(shape)
    if taken != len(values) or (scales is not None and rows != len(scales)):
        raise WireError("an adapter payload holds values or scales that belong to no tensor")
    return state


def _scale(values: Tensor, scales: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undoes `_round` for a tensor of this shape."""
    rows = values.reshape(len(scales), -1).mul_(scales[:, None])
    if len(shape) > 1 and shape[1] < shape[0]:
        return rows.reshape(shape[1], shape[0], *shape[2:]).movedim(0, 1).contiguous()
    return rows


def _channels_of(shape: tuple[int, ...]) -> int:
    return min(shape[:2]) if len(shape) > 1 else 1


def _check_scales(values: Tensor, scales: Tensor) -> None:
    if scales.dtype != torch.float32 or scales.dim() != 1:
        raise WireError(f"adapter scales are {scales.dtype} with {scales.dim()} axes, expected float32 with 1")
    if not bool((scales.isfinite() & (scales >= 0)).all()):
        raise WireError("an adapter's scale is negative or not finite")
    if len(values) and int(values.min()) < -_LIMIT:
        raise WireError(f"an adapter's int8 value is below -{_LIMIT}")


def _layout(packed: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Keys, strictly sorted, and shapes. Raises WireError for anything else."""
    refused = WireError("an adapter payload's layout is not a sorted list of keys and shapes")
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise refused
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(packed.numpy().tobytes(), MAX_LAYOUT_BYTES)
        entries: Any = json.loads(text) if inflater.eof and not inflater.unused_data else None
    except (zlib.error, ValueError, RecursionError):
        raise refused from None
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise refused
    keys = [entry[0] for entry in entries]
    if any(one >= other for one, other in itertools.pairwise(keys)):
        raise refused
    return [(key, tuple(shape)) for key, shape in entries]


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and is_shape(entry[1])
        and all(size > 0 for size in entry[1])
    )


def _join(tensors: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    flat = [tensor.reshape(-1) for tensor in tensors]
    return torch.cat(flat) if flat else torch.empty(0, dtype=dtype)


def _check_finite(state: Mapping[str, Tensor]) -> None:
    for key, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"adapter tensor {key} holds values that are not finite")
