"""Randomness for privacy: patient draws and noise. In: counts and shapes; out: uniforms and Gaussians in float64.

    >>> SecureRandom().normal((2, 3)).shape
    torch.Size([2, 3])

| source               | key                    | for                                                         |
| -------------------- | ---------------------- | ----------------------------------------------------------- |
| SecureRandom         | 256 bits of os.urandom | every real draw: AES-256 in counter mode; never a seed      |
| InsecureSeededRandom | an integer             | tests alone: whoever knows the seed subtracts the noise     |

Gaussians are Box-Muller pairs on uniforms that use all 53 bits of a float64 mantissa. What that means:

| question               | answer                                                                                  |
| ---------------------- | --------------------------------------------------------------------------------------- |
| tails                  | cut at sqrt(-2 ln 2^-53) = 8.57 deviations; the missing mass, 1e-17, is below any delta |
| floating-point attacks | Mironov (CCS 2012) reads the low bits of value + noise. Noise is computed and added in  |
|                        | float64, and the sum leaves as float32: 29 low bits are dropped, so that a released     |
|                        | value has many preimages under both neighbours. This hardens; it is not a proof, which  |
|                        | a discrete Gaussian would give.                                                         |
| a process that forks   | the child draws a new key, so that parent and child never share noise                   |
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

Uniforms = npt.NDArray[np.float64]
_UNIT = 2.0**-53


class RandomSource(Protocol):
    """What patient sampling and noise need."""

    def uniform(self, count: int) -> Uniforms:
        """`count` independent uniforms in [0, 1), with a resolution of 2^-53."""

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """Independent standard Gaussians: float64, on the CPU."""


class SecureRandom:
    """Cryptographically secure source, keyed by the operating system. Not for sharing between threads."""

    def __init__(self) -> None:
        self._process = -1
        self._stream: CipherContext | None = None

    def uniform(self, count: int) -> Uniforms:
        """`count` independent uniforms in [0, 1)."""
        return _to_uniform(self._words(count))

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """Independent standard Gaussians: float64, on the CPU."""
        return _to_normal(self._words(_padded(shape)), shape)

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        if self._stream is None or self._process != os.getpid():
            self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
            self._process = os.getpid()
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)


class InsecureSeededRandom:
    """Repeatable source for tests. Gives NO privacy: anyone with the seed can remove the noise."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(seed)

    def uniform(self, count: int) -> Uniforms:
        """`count` repeatable uniforms in [0, 1)."""
        return _to_uniform(self._words(count))

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """Repeatable standard Gaussians: float64, on the CPU."""
        return _to_normal(self._words(_padded(shape)), shape)

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        return self._bits.random_raw(count).astype(np.uint64)


def _padded(shape: Sequence[int]) -> int:
    """Box-Muller makes pairs: the next even number of elements."""
    count = math.prod(shape)
    return count + count % 2


def _to_uniform(words: npt.NDArray[np.uint64]) -> Uniforms:
    return (words >> np.uint64(11)).astype(np.float64) * _UNIT


def _to_normal(words: npt.NDArray[np.uint64], shape: Sequence[int]) -> torch.Tensor:
    """Box-Muller, each half of `words` giving one coordinate of the pairs."""
    half = len(words) // 2
    uniform = _to_uniform(words)
    radius = np.sqrt(-2.0 * np.log(uniform[:half] + _UNIT))  # (0, 1]: the logarithm is finite
    angle = (2.0 * np.pi) * uniform[half:]
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(pairs[: math.prod(shape)]).reshape(tuple(shape))
