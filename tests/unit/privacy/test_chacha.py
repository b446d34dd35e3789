"""ChaCha20 on torch integers: the RFC's vector, another implementation's keystream, and a stream that never repeats."""

from __future__ import annotations

import os

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from fedmed.privacy import chacha
from fedmed.privacy.chacha import Keystream, chacha20_blocks
from fedmed.privacy.random import box_muller


def as_bytes(blocks: torch.Tensor) -> bytes:
    return blocks.numpy().tobytes()


def test_the_rfc_8439_block() -> None:
    """Section 2.3.2: its counter 1 and nonce 00:00:00:09:00:00:00:4a:00:00:00:00 are these 16 bytes here."""
    counter_and_nonce = bytes.fromhex("01000000 00000009 0000004a 00000000")
    first = int.from_bytes(counter_and_nonce[:8], "little")
    block = chacha20_blocks(bytes(range(32)), counter_and_nonce[8:], first, 1, "cpu")
    assert as_bytes(block).hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


@pytest.mark.parametrize("first", [0, 1, 2**31 - 7, 2**31 + 5, 2**40])
def test_blocks_are_those_of_the_cryptography_package(first: int) -> None:
    key, nonce, count = os.urandom(32), os.urandom(8), 1000
    cipher = Cipher(algorithms.ChaCha20(key, first.to_bytes(8, "little") + nonce), mode=None).encryptor()
    assert as_bytes(chacha20_blocks(key, nonce, first, count, "cpu")) == cipher.update(bytes(64 * count))


def test_the_counter_carries_into_its_upper_word() -> None:
    key, nonce, edge = os.urandom(32), os.urandom(8), 2**32
    across = chacha20_blocks(key, nonce, edge - 2, 4, "cpu")
    alone = [chacha20_blocks(key, nonce, number, 1, "cpu") for number in range(edge - 2, edge + 2)]
    assert torch.equal(across, torch.cat(alone))
    assert len({as_bytes(block) for block in [*alone, chacha20_blocks(key, nonce, 0, 1, "cpu")]}) == 5


def test_a_stream_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chacha, "_REFILL_BLOCKS", 2)
    stream = Keystream("cpu")
    drawn = torch.cat([stream.words(count).clone() for count in (0, 1, 3, 16, 7, 100, 1)])
    again = chacha20_blocks(stream._key, stream._nonce, 0, 16, "cpu").view(torch.int64).flatten()
    assert torch.equal(drawn, again)
    assert drawn.unique().numel() == 128


def test_every_stream_has_a_key_of_its_own() -> None:
    torch.manual_seed(0)
    first = Keystream("cpu").words(8).clone()
    torch.manual_seed(0)
    assert not torch.equal(first, Keystream("cpu").words(8))


def test_its_gaussians_are_standard() -> None:
    drawn = box_muller(Keystream("cpu").words(200_000), (200_000,))
    assert drawn.dtype == torch.float64
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-6
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=drawn.numel())
    assert low < float(drawn.square().sum()) < high
