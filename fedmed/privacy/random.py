"""Randomness for privacy: patient draws and noise. In: counts and shapes; out: uniforms and Gaussians in float64.

    >>> SecureRandom().normal((2, 3)).shape
    torch.Size([2, 3])

| source               | key                    | for                                                              |
| -------------------- | ---------------------- | ---------------------------------------------------------------- |
| SecureRandom         | 256 bits of os.urandom | every real draw; never a seed. On the CPU AES-256 in counter     |
|                      |                        | mode, on any other device ChaCha20 there (fedmed.privacy.chacha) |
| InsecureSeededRandom | an integer             | tests alone: whoever knows the seed subtracts the noise          |

Gaussians are Box-Muller pairs on uniforms that use all 53 bits of a float64 mantissa. What that means:

| question               | answer                                                                                  |
| ---------------------- | --------------------------------------------------------------------------------------- |
| tails                  | cut at sqrt(-2 ln 2^-53) = 8.57 deviations; the missing mass, 1e-17, is below any delta |
| floating-point attacks | Mironov (CCS 2012) reads the low bits of value + noise. Noise is computed and added in  |
|                        | float64, and the sum leaves as float32: 29 low bits are dropped, so that a released     |
|                        | value has many preimages under both neighbours. This hardens; it is not a proof, which  |
|                        | a discrete Gaussian would give.                                                         |
| a process that forks   | the child draws new keys, so that parent and child never share noise                    |
| several devices        | each has a key of its own; patient draws stay on the CPU                                |
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from fedmed.privacy.chacha import Keystream

Uniforms = npt.NDArray[np.float64]
CPU = torch.device("cpu")
_UNIT = 2.0**-53


class RandomSource(Protocol):
    """What patient sampling and noise need."""

    def uniform(self, count: int) -> Uniforms:
        """`count` independent uniforms in [0, 1), with a resolution of 2^-53."""

    def normal(self, shape: Sequence[int], device: torch.device = CPU) -> Tensor:
        """Independent standard Gaussians: float64, on `device`."""


class SecureRandom:
    """Cryptographically secure source, keyed by the operating system. Not for sharing between threads."""

    def __init__(self) -> None:
        self._process = -1
        self._streams: dict[torch.device, AesKeystream | Keystream] = {}

    def uniform(self, count: int) -> Uniforms:
        """`count` independent uniforms in [0, 1)."""
        return _to_uniform(self._words(count, CPU))

    def normal(self, shape: Sequence[int], device: torch.device = CPU) -> Tensor:
        """Independent standard Gaussians: float64, made on `device`."""
        return box_muller(self._words(_padded(shape), device), shape)

    def _words(self, count: int, device: torch.device) -> Tensor:
        if self._process != os.getpid():
            self._streams, self._process = {}, os.getpid()
        if device not in self._streams:
            self._streams[device] = AesKeystream() if device.type == "cpu" else Keystream(device)
        return self._streams[device].words(count)


class AesKeystream:
    """An endless stream of 64-bit words on the CPU: AES-256 in counter mode, with a key and a start of its own."""

    def __init__(self) -> None:
        self._cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
        self._zeros = b""

    def words(self, count: int) -> Tensor:
        """The next `count` words: int64 [count], uniform over all 2^64 values. The caller may overwrite them."""
        words = torch.empty(count, dtype=torch.int64)
        if count != len(self._zeros) // 8:
            self._zeros = bytes(8 * count)
        self._cipher.update_into(self._zeros, words.numpy().view(np.uint8).data)
        return words


class InsecureSeededRandom:
    """Repeatable source for tests. Gives NO privacy: anyone with the seed can remove the noise."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(seed)

    def uniform(self, count: int) -> Uniforms:
        """`count` repeatable uniforms in [0, 1)."""
        return _to_uniform(self._words(count))

    def normal(self, shape: Sequence[int], device: torch.device = CPU) -> Tensor:
        """Repeatable standard Gaussians: float64, the same ones whatever the device."""
        return box_muller(self._words(_padded(shape)), shape).to(device)

    def _words(self, count: int) -> Tensor:
        return torch.from_numpy(self._bits.random_raw(count).view(np.int64))


def box_muller(words: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard Gaussians: float64 of `shape`, from an even number of 64-bit words, at least as many; overwrites them.

    The first half of the words gives the radii of the pairs, the second the angles.
    """
    half = words.numel() // 2
    signed = words.bitwise_right_shift_(11).double()  # 53 bits: whole numbers in [-2^52, 2^52)
    radius, angle = signed[:half], signed[half:]
    radius.mul_(_UNIT).add_(0.5 + _UNIT)  # in (0, 1], exactly: the logarithm is finite
    radius.log_().mul_(-2.0).sqrt_()
    angle.mul_(2.0 * math.pi * _UNIT)  # in [-pi, pi)
    sine = torch.sin(angle).mul_(radius)
    radius.mul_(angle.cos_())
    angle.copy_(sine)
    return signed[: math.prod(shape)].view(tuple(shape))


def _padded(shape: Sequence[int]) -> int:
    """Box-Muller makes pairs: the next even number of elements."""
    count = math.prod(shape)
    return count + count % 2


def _to_uniform(words: Tensor) -> Uniforms:
    return (words.numpy().view(np.uint64) >> np.uint64(11)).astype(np.float64) * _UNIT
