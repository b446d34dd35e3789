"""ChaCha20 where the gradients are. In: a key and a count; out: keystream made by integer operations on the device.

    >>> Keystream("cpu").words(8).shape                    # one block: 16 words of 32 bits, 8 of 64
    torch.Size([8])

The state is 16 words of 32 bits: 4 constants, 8 of key, 2 of block counter, 2 of nonce (Bernstein 2008; RFC 8439 reads
the same 16 words as a counter of 32 bits and a nonce of 96). Every operation is torch int32 over all blocks and all four
columns at once: sums wrap around, logical shifts are arithmetic ones with a mask.

| question                     | answer                                                                            |
| ---------------------------- | --------------------------------------------------------------------------------- |
| key and nonce                | 256 and 64 fresh bits of os.urandom for every Keystream; never a seed             |
| how long before it repeats   | the 64-bit counter allows 2^63 blocks, 2^66 numbers, of one key; torch refuses to |
|                              | count further                                                                     |
| words made but not asked for | kept for the next call; a word handed out is never handed out again               |
| who uses it                  | every device but the CPU, where AES instructions are faster (fedmed.privacy.random) |
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

_CONSTANTS = b"expand 32-byte k"
_DOUBLE_ROUNDS = 10
# 64-bit words in a block, and the fewest blocks of a refill: a refill is some 500 kernel launches however short it is.
_WORDS = 8
_REFILL_BLOCKS = 1 << 18


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
            fresh = chacha20_blocks(self._key, self._nonce, self._next_block, blocks, self._left.device)
            self._next_block += blocks
            self._left = torch.cat([self._left, fresh.view(torch.int64).flatten()])
        taken, self._left = self._left[:count], self._left[count:]
        return taken


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
