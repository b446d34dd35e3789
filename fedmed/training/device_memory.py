"""How many records fit one forward pass. In: what one record needs, what is free; out: a physical batch that only shrinks.

    >>> batch = PhysicalBatch(64)
    >>> batch.halve()
    >>> batch.size
    32

The physical batch changes time and memory alone: which patients are drawn, their records, the clipping and the noise do
not depend on it, and a step that ran out of memory repeats the same draw with half of it, before any noise is added. So
nothing more is spent, and nothing is released twice.

| case                                   | what happens                                                                |
| -------------------------------------- | --------------------------------------------------------------------------- |
| the site sets a number                 | that number to begin with                                                   |
| the site sets 0                        | measured on the first records drawn: a share of the free memory, a power of |
|                                        | two, MOST at most                                                           |
| the made-up records of two patients,   | 1 from the first on                                                         |
| fedmed.training.proof, do not fit      |                                                                             |
| out of memory                          | halved for good, the step's sum is begun anew with the same draw            |
| out of memory with a single record     | ModelError: this device is too small                                        |
| a patient with more records than fit   | in several passes, clipped once (fedmed.training.batches)                   |
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fedmed.errors import ModelError

log = logging.getLogger("fedmed.training")
T = TypeVar("T")
MOST = 256
# The backward pass needs room beside what the forward pass keeps, and other processes have their own plans.
SHARE = 0.4
# How torch's CPU allocator says it, on Windows and elsewhere; it has no error class of its own.
_NO_MEMORY = ("not enough memory", "can't allocate memory")


@dataclass
class PhysicalBatch:
    """Records in one forward pass. `size` 0: not chosen yet."""

    size: int

    def halve(self) -> None:
        """Half of it, after the device ran out of memory. Raises ModelError when it is a single record already."""
        if self.size <= 1:
            raise ModelError(
                "the device has not enough memory for a single record",
                "set gradient_checkpointing: true or base_dtype: bfloat16 in site.yaml, or take a larger device",
            )
        self.size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def within_memory(self, compute: Callable[[], T]) -> T:
        """`compute()`, begun anew with half of it whenever memory runs out; so it must draw and release nothing."""
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.halve()  # outside of the handler, whose traceback would keep the tensors alive
            log.warning("out of memory: the physical batch is %d from now on", self.size)

    def choose(self, bytes_per_record: int, device: torch.device) -> None:
        """Sets the size by what is free on the device."""
        fitting = SHARE * free_bytes(device) / max(1, bytes_per_record)
        self.size = 1
        while 2 * self.size <= min(fitting, MOST):
            self.size *= 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    )


def kept_bytes(forward: Callable[[], object], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once, the model's own tensors left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()  # kept until the count is done, so that no address is used twice
    del result
    return sum(seen.values())


def set_checkpointing(model: nn.Module, on: bool) -> None:
    """Whether the model's layers keep nothing but their input and are run again in the backward pass.

    Raises:
        ModelError: the model has no layers that can.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if on and not layers:
        raise ModelError(
            f"{type(model).__name__} has no gradient checkpointing", "set gradient_checkpointing: false in site.yaml"
        )
    if on and not any(layer.gradient_checkpointing for layer in layers):
        cast(PreTrainedModel, model).gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = on  # of this module alone: what is inside stays without dropout


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device; on a CPU also within the process's control group."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    info = Path("/proc/meminfo")
    if info.exists():  # counts what the system would give back from its caches
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    return min(free, _group_room())


def _group_room() -> int:
    """What the control group leaves, where there is one with a limit."""
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return max(0, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return 1 << 62
