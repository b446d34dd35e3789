"""ChaCha20 where the gradients are. In: a key and a count; out: keystream made on the device.

    >>> Keystream("cpu").words(8).shape                    # one block: 16 words of 32 bits, 8 of 64
    torch.Size([8])

The state is 16 words of 32 bits: 4 constants, 8 of key, 2 of block counter, 2 of nonce (Bernstein 2008; RFC 8439 reads
the same 16 words as a counter of 32 bits and a nonce of 96). In torch every operation is int32 over all blocks and all four
columns at once: sums wrap around, logical shifts are arithmetic ones with a mask. That is 560 kernels, whose starts cost
more than their work: on a GPU one kernel, which torch compiles there, makes the same blocks (`_KERNEL`).

| question                     | answer                                                                            |
| ---------------------------- | --------------------------------------------------------------------------------- |
| key and nonce                | 256 and 64 fresh bits of os.urandom for every Keystream; never a seed             |
| how long before it repeats   | the 64-bit counter allows 2^63 blocks, 2^66 numbers, of one key; torch refuses to |
|                              | count further                                                                     |
| words made but not asked for | kept for the next call; a word handed out is never handed out again               |
| who uses it                  | every device but the CPU, where AES instructions are faster (fedmed.privacy.random) |
| is the kernel right          | a process compares it with torch's operations before its first use; where it does   |
|                              | not compile or differs, a warning is logged and torch's operations go on            |
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger("fedmed.privacy")
_CONSTANTS = b"expand 32-byte k"
_DOUBLE_ROUNDS = 10
# 64-bit words in a block, and the fewest blocks of a refill: without the kernel it is 560 launches however short it is.
_WORDS = 8
_REFILL_BLOCKS = 1 << 18
# One block a thread: the counter comes in a tensor, key and nonce as arguments, eight 64-bit words go out.
_KERNEL = """
template <typename T> void chacha20(
    T counter, T k0, T k1, T k2, T k3, T nonce, T& o0, T& o1, T& o2, T& o3, T& o4, T& o5, T& o6, T& o7) {
  const T given[7] = {k0, k1, k2, k3, counter, nonce, 0};
  unsigned int start[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u};
  unsigned int x[16];
#pragma unroll
  for (int i = 0; i < 6; ++i) {
    start[4 + 2 * i] = (unsigned int)(unsigned long long)given[i];
    start[5 + 2 * i] = (unsigned int)((unsigned long long)given[i] >> 32);
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) x[i] = start[i];
#pragma unroll
  for (int round = 0; round < 20; ++round) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int turn = round % 2;
      unsigned int &a = x[i], &b = x[4 + (i + turn) % 4], &c = x[8 + (i + 2 * turn) % 4], &d = x[12 + (i + 3 * turn) % 4];
      a += b; d ^= a; d = (d << 16) | (d >> 16);
      c += d; b ^= c; b = (b << 12) | (b >> 20);
      a += b; d ^= a; d = (d << 8) | (d >> 24);
      c += d; b ^= c; b = (b << 7) | (b >> 25);
    }
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) x[i] += start[i];
  T* out[8] = {&o0, &o1, &o2, &o3, &o4, &o5, &o6, &o7};
#pragma unroll
  for (int i = 0; i < 8; ++i) *out[i] = (T)((unsigned long long)x[2 * i] | ((unsigned long long)x[2 * i + 1] << 32));
}
"""
_ARGUMENTS = ("k0", "k1", "k2", "k3", "nonce")
Blocks = Callable[[bytes, bytes, int, int, torch.device], Tensor]


class Keystream:
    """An endless stream of 64-bit words on `device`, under a key of its own."""

    def __init__(self, device: torch.device | str) -> None:
        self._key, self._nonce = os.urandom(32), os.urandom(8)
        self._next_block = 0
        self._left = torch.empty(0, dtype=torch.int64, device=device)

    def words(self, count: int) -> Tensor:
        """The next `count` words: int64 [count], uniform over all 2^64 values. The caller may overwrite them."""
        if (lacking := count - self._left.numel()) > 0:
            blocks = max(-(-lacking // _WORDS), _REFILL_BLOCKS)
            make = _blocks_on(self._left.device)
            fresh = make(self._key, self._nonce, self._next_block, blocks, self._left.device)
            self._next_block += blocks
            self._left = torch.cat([self._left, fresh.view(torch.int64).flatten()])
        taken, self._left = self._left[:count], self._left[count:]
        return taken


@cache
def _blocks_on(device: torch.device) -> Blocks:
    """What makes blocks on the device."""
    return _proven(device) if device.type == "cuda" else chacha20_blocks


def _proven(device: torch.device) -> Blocks:
    """The kernel, where it gives what torch's operations give."""
    sample = (os.urandom(32), os.urandom(8), (1 << 32) - 500, 1000, device)
    try:
        if torch.equal(_kernel_blocks(*sample), chacha20_blocks(*sample)):
            return _kernel_blocks
        reason = "it gives other blocks"
    except (RuntimeError, AssertionError, ImportError) as error:  # no compiler, or a torch that has moved it
        reason = str(error)[:200]
    log.warning("ChaCha20's kernel is not used, noise takes longer: %s", reason)
    return chacha20_blocks


def _kernel_blocks(key: bytes, nonce: bytes, first: int, count: int, device: torch.device) -> Tensor:
    """As `chacha20_blocks`, in one kernel."""
    parts = (key[:8], key[8:16], key[16:24], key[24:], nonce)
    words = dict(zip(_ARGUMENTS, (int.from_bytes(part, "little", signed=True) for part in parts), strict=True))
    made = _kernel()(torch.arange(first, first + count, device=device), **words)
    return torch.stack(made, dim=1).view(torch.int32)


@cache
def _kernel() -> Callable[..., tuple[Tensor, ...]]:
    """Compiled by NVRTC, which comes with torch, at its first use. Beta in torch: `_blocks_on` expects it to fail."""
    from torch.cuda.jiterator import _create_multi_output_jit_fn

    return _create_multi_output_jit_fn(_KERNEL, _WORDS, **dict.fromkeys(_ARGUMENTS, 0))


def chacha20_blocks(key: bytes, nonce: bytes, first: int, count: int, device: torch.device | str) -> Tensor:
    """Blocks `first` to `first + count - 1` of the keystream: int32 [count, 16], little-endian words in RFC 8439's order.

    Args:
        key: 32 bytes. nonce: 8 bytes. first: block counter, below 2^63 - count.
    """
    start = torch.empty(16, count, dtype=torch.int32, device=device)
    start[:12] = _int32(_CONSTANTS + key).to(device)[:, None]
    start[12:14] = torch.arange(first, first + count, device=device).view(torch.int32).view(count, 2).T
    start[14:] = _int32(nonce).to(device)[:, None]
    a, b, c, d = start.clone().view(4, 4, count)
    for _ in range(_DOUBLE_ROUNDS):
        _quarter_rounds(a, b, c, d)  # the four columns
        b, c, d = b.roll(-1, 0), c.roll(-2, 0), d.roll(-3, 0)
        _quarter_rounds(a, b, c, d)  # the four diagonals
        b, c, d = b.roll(1, 0), c.roll(2, 0), d.roll(3, 0)
    return (torch.cat([a, b, c, d]) + start).T.contiguous()


def _quarter_rounds(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
    """RFC 8439, section 2.1, on every column of four rows [4, count], in place."""
    spare = torch.empty_like(a)
    for changed, added, turned, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        changed.add_(added)
        turned.bitwise_xor_(changed)
        torch.bitwise_right_shift(turned, 32 - bits, out=spare)
        spare.bitwise_and_((1 << bits) - 1)  # the shift carried the sign: a logical one brings zeros
        turned.bitwise_left_shift_(bits).bitwise_or_(spare)


def _int32(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.int32)
