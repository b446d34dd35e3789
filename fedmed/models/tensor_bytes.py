"""safetensors bytes without a copy: what adapters of hundreds of megabytes are written to and read from.

    tensors -> to_parts -> pieces in order (views of the tensors) -> a file, a frame
    bytes   -> to_tensors -> tensors that are views of the bytes
    file    -> StoredTensors -> tensors that are read one at a time

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
import mmap
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmed.errors import WireError

MAX_HEADER_BYTES = 1 << 24
MAX_AXES = 8
_TOO_MANY = 1 << 63
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
    header, body = _header(memoryview(data))
    found = _places(header, len(body))
    return {
        key: _view(body[found[key].begin : found[key].end], found[key].dtype).reshape(found[key].shape)
        for key in sorted(found)
    }


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, by key and sorted: each is read when it is asked for, and none is kept.

    The file stays open, so that the tensors stay what they were however the file is renamed or replaced.

    Raises:
        OSError: the file cannot be opened or read. WireError: it is not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        size = os.fstat(self._file.fileno()).st_size
        prefix = self._file.read(8)
        length = int.from_bytes(prefix, "little")
        header, _ = _header(memoryview(prefix + self._file.read(min(length, MAX_HEADER_BYTES))))
        self._start = 8 + length
        found = _places(header, size - self._start)
        self._found = {key: found[key] for key in sorted(found)}

    def __getitem__(self, key: str) -> Tensor:
        place = self._found[key]
        if (size := place.end - place.begin) == 0:
            return torch.empty(place.shape, dtype=place.dtype)
        # Pages of its own: read one after the other from the heap, large tensors would leave holes that small ones keep open.
        buffer = mmap.mmap(-1, size)
        if os.preadv(self._file.fileno(), [buffer], self._start + place.begin) != size:
            raise OSError(f"{self._file.name} ends within the tensor {key}")
        return torch.frombuffer(buffer, dtype=place.dtype).reshape(place.shape)

    def __contains__(self, key: object) -> bool:
        return key in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the body a tensor lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def _places(header: Mapping[str, Any], size: int) -> dict[str, _Place]:
    """Of every tensor, in a body of so many bytes, which they must fill."""
    found: dict[str, _Place] = {}
    end = 0
    for key, entry in sorted(header.items(), key=lambda item: _begin(item[0], item[1])):
        dtype, shape, offsets = _entry(key, entry)
        if offsets != (end, end + math.prod(shape) * dtype.itemsize) or offsets[1] > size:
            raise WireError(
                f"tensor {key[:200]!r} lies at {list(offsets)}, which does not fit its shape and the others"
            )
        end = offsets[1]
        found[key] = _Place(dtype, shape, *offsets)
    if end != size:
        raise WireError(f"an adapter payload holds {size - end} bytes that belong to no tensor")
    return found


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
    if not (is_shape(shape) and _is_place(offsets)):
        raise WireError(f"tensor {key[:200]!r} has a shape or place that is none")
    return _DTYPES[name], tuple(shape), (offsets[0], offsets[1])


def is_shape(value: Any) -> bool:
    """Whether `value` is a list of at most MAX_AXES whole numbers of at least 0 that torch can count with."""
    if not (
        isinstance(value, list) and len(value) <= MAX_AXES and all(type(size) is int and size >= 0 for size in value)
    ):
        return False
    return math.prod(max(1, size) for size in value) < _TOO_MANY  # an axis of 0 hides no other that torch cannot hold


def _is_place(value: Any) -> bool:
    """Whether `value` is a pair of whole numbers of at least 0."""
    return (
        isinstance(value, list) and len(value) == 2 and all(type(end) is int and 0 <= end < _TOO_MANY for end in value)
    )


def _view(data: memoryview, dtype: torch.dtype) -> Tensor:
    if not len(data):
        return torch.empty(0, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        tensor = torch.frombuffer(data, dtype=dtype)
    return tensor.clone() if tensor.data_ptr() % dtype.itemsize else tensor
