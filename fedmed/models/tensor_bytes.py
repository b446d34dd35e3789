"""safetensors bytes without a copy: what adapters of hundreds of megabytes are written to and read from.

    tensors -> to_parts -> pieces in order (views of the tensors) -> a file, a frame
    bytes   -> to_tensors -> tensors that are views of the bytes

The format is the safetensors library's (https://github.com/huggingface/safetensors): eight bytes of length, a JSON header, the
tensors' bytes. The library itself copies twice in each direction; its own reader reads what this writes, byte for byte.

| bytes that are read                                     | what happens                    |
| ------------------------------------------------------- | ------------------------------- |
| cut off, no JSON, header above MAX_HEADER_BYTES         | WireError                       |
| a dtype other than F32, BF16, I8, U8                    | WireError naming the tensor     |
| offsets that overlap, leave a gap or do not fit a shape | WireError naming the tensor     |
| read-only bytes                                         | views, which nobody may write to |
| a tensor that does not begin where its dtype may        | a copy of this tensor           |
"""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedmed.errors import WireError

MAX_HEADER_BYTES = 1 << 24
MAX_AXES = 8
# In the order that the library writes them in.
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def to_parts(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """The header, then each tensor's bytes, by dtype and key; views where they are contiguous.

    Args:
        tensors: on the CPU, float32, bfloat16, int8 or uint8; they must stay as they are while the parts are in use.
    """
    ranks = list(_NAMES)
    order = sorted(tensors, key=lambda key: (ranks.index(tensors[key].dtype), key))
    header: dict[str, Any] = {}
    end = 0
    for key in order:
        begin, end = end, end + tensors[key].numel() * tensors[key].element_size()
        header[key] = {
            "dtype": _NAMES[tensors[key].dtype],
            "shape": list(tensors[key].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [struct.pack("<Q", len(text)) + text, *(_bytes_of(tensors[key]) for key in order)]


def to_tensors(data: bytes | memoryview) -> dict[str, Tensor]:
    """Views of `data` by key, sorted. Raises WireError: see the module's table."""
    view = memoryview(data)
    header, body = _header(view)
    found: dict[str, Tensor] = {}
    end = 0
    for key, entry in sorted(header.items(), key=lambda item: _begin(item[0], item[1])):
        dtype, shape, offsets = _entry(key, entry)
        if offsets != (end, end + math.prod(shape) * dtype.itemsize) or offsets[1] > len(body):
            raise WireError(
                f"tensor {key[:200]!r} lies at {list(offsets)}, which does not fit its shape and the others"
            )
        end = offsets[1]
        found[key] = _view(body[offsets[0] : end], dtype).reshape(shape)
    if end != len(body):
        raise WireError(f"an adapter payload holds {len(body) - end} bytes that belong to no tensor")
    return {key: found[key] for key in sorted(found)}


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _header(view: memoryview) -> tuple[dict[str, Any], memoryview]:
    refused = WireError(f"an adapter payload of {len(view)} bytes is not safetensors")
    if len(view) < 8:
        raise refused
    (size,) = struct.unpack("<Q", view[:8])
    if size > min(MAX_HEADER_BYTES, len(view) - 8):
        raise refused
    try:
        header = json.loads(bytes(view[8 : 8 + size]))
    except (ValueError, RecursionError):
        raise refused from None
    if not isinstance(header, dict):
        raise refused
    header.pop("__metadata__", None)
    return header, view[8 + size :]


def _begin(key: str, entry: Any) -> tuple[int, int]:
    return _entry(key, entry)[2]


def _entry(key: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], tuple[int, int]]:
    """dtype, shape and place of a header's entry, each of its type and sign."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise WireError(f"tensor {key[:200]!r} is not described as safetensors does")
    name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(name, str) or name not in _DTYPES:
        raise WireError(f"tensor {key[:200]!r} has dtype {str(name)[:40]}, expected one of {sorted(_DTYPES)}")
    if not (is_shape(shape) and is_shape(offsets) and len(offsets) == 2):
        raise WireError(f"tensor {key[:200]!r} has a shape or place that is none")
    return _DTYPES[name], tuple(shape), (offsets[0], offsets[1])


def is_shape(value: Any) -> bool:
    """Whether `value` is a list of at most MAX_AXES whole numbers of at least 0."""
    return isinstance(value, list) and len(value) <= MAX_AXES and all(type(size) is int and size >= 0 for size in value)


def _view(data: memoryview, dtype: torch.dtype) -> Tensor:
    if not len(data):
        return torch.empty(0, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        tensor = torch.frombuffer(data, dtype=dtype)
    return tensor.clone() if tensor.data_ptr() % dtype.itemsize else tensor
