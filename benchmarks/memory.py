"""Peak of the memory that torch holds during a call, weights of the model included.

    >>> peak_bytes(lambda: torch.zeros(1000, 1000).sum(), torch.device("cpu")) // 10**6
    4

On a CPU from the profiler's record of every allocation and release, on a GPU from its allocator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Bytes allocated at the highest point of `call`, above what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True) as profiled:
        call()
    assert profiled.kineto_results is not None
    held = peak = 0
    events = sorted(profiled.kineto_results.events(), key=lambda event: event.start_ns())
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def weight_bytes(model: torch.nn.Module) -> int:
    """Of every parameter and buffer, shared ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
