"""ChaCha20 on torch integers: the RFC's vector, another implementation's keystream, and a stream that never repeats."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from helpers_device import DEVICES
from scipy import stats

from fedmed.privacy import chacha
from fedmed.privacy.chacha import Keystream, chacha20_blocks
from fedmed.privacy.random import box_muller


def as_bytes(blocks: torch.Tensor) -> bytes:
    return blocks.cpu().numpy().tobytes()


@pytest.mark.parametrize("device", DEVICES)
def test_the_rfc_8439_block(device: torch.device) -> None:
    """Section 2.3.2: its counter 1 and nonce 00:00:00:09:00:00:00:4a:00:00:00:00 are these 16 bytes here."""
    counter_and_nonce = bytes.fromhex("01000000 00000009 0000004a 00000000")
    first = int.from_bytes(counter_and_nonce[:8], "little")
    block = chacha20_blocks(bytes(range(32)), counter_and_nonce[8:], first, 1, device)
    assert as_bytes(block).hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("first", [0, 1, 2**31 - 7, 2**31 + 5, 2**40])
def test_blocks_are_those_of_the_cryptography_package(first: int, device: torch.device) -> None:
    key, nonce, count = os.urandom(32), os.urandom(8), 1000
    cipher = Cipher(algorithms.ChaCha20(key, first.to_bytes(8, "little") + nonce), mode=None).encryptor()
    assert as_bytes(chacha20_blocks(key, nonce, first, count, device)) == cipher.update(bytes(64 * count))


@pytest.mark.parametrize("device", DEVICES)
def test_the_counter_carries_into_its_upper_word(device: torch.device) -> None:
    key, nonce, edge = os.urandom(32), os.urandom(8), 2**32
    across = chacha20_blocks(key, nonce, edge - 2, 4, device)
    alone = [chacha20_blocks(key, nonce, number, 1, device) for number in range(edge - 2, edge + 2)]
    assert torch.equal(across, torch.cat(alone))
    assert len({as_bytes(block) for block in [*alone, chacha20_blocks(key, nonce, 0, 1, device)]}) == 5


@pytest.mark.parametrize("device", DEVICES)
def test_a_stream_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(chacha, "_REFILL_BLOCKS", 2)
    stream = Keystream(device)
    drawn = torch.cat([stream.words(count).clone() for count in (0, 1, 3, 16, 7, 100, 1)])
    again = chacha20_blocks(stream._key, stream._nonce, 0, 16, device).view(torch.int64).flatten()
    assert torch.equal(drawn, again)
    assert drawn.unique().numel() == 128


def test_every_stream_has_a_key_of_its_own() -> None:
    torch.manual_seed(0)
    first = Keystream("cpu").words(8).clone()
    torch.manual_seed(0)
    assert not torch.equal(first, Keystream("cpu").words(8))


@pytest.mark.parametrize("device", DEVICES)
def test_its_gaussians_are_standard(device: torch.device) -> None:
    drawn = box_muller(Keystream(device).words(200_000), (200_000,)).cpu()
    assert drawn.dtype == torch.float64
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-6
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], df=drawn.numel())
    assert low < float(drawn.square().sum()) < high


@pytest.fixture
def kernel_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., torch.Tensor]], chacha.Blocks]:
    """What a GPU's noise is made with, when the kernel is this function; `meta` compares nothing, so the CPU stands in."""

    def choose(kernel: Callable[..., torch.Tensor]) -> chacha.Blocks:
        monkeypatch.setattr(chacha, "_kernel_blocks", kernel)
        return chacha._proven(torch.device("cpu"))

    return choose


def test_a_kernel_that_gives_the_same_blocks_is_used(kernel_of: Callable[..., chacha.Blocks]) -> None:
    def right(*arguments: object) -> torch.Tensor:
        return chacha20_blocks(*arguments)  # type: ignore[arg-type]

    assert kernel_of(right) is right


def test_a_kernel_that_differs_in_one_word_is_not_used(
    kernel_of: Callable[..., chacha.Blocks], caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*arguments: object) -> torch.Tensor:
        made = chacha20_blocks(*arguments)  # type: ignore[arg-type]
        made[700, 3] += 1
        return made

    assert kernel_of(wrong) is chacha20_blocks
    assert "it gives other blocks" in caplog.text


def test_a_kernel_that_does_not_compile_is_not_used(
    kernel_of: Callable[..., chacha.Blocks], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("nvrtc: error: invalid value for --gpu-architecture")

    assert kernel_of(broken) is chacha20_blocks
    assert "--gpu-architecture" in caplog.text


def test_the_kernels_source_makes_the_same_blocks(tmp_path: Path) -> None:
    """Compiled for the CPU, where there is a compiler: it is plain C++ but for its pragmas."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    arguments = ", ".join(f"given[{index}]" for index in range(6))
    outputs = ", ".join(f"made[{index}]" for index in range(8))
    (tmp_path / "kernel.cpp").write_text(
        f"#include <cstdio>\n#include <cstdint>\n{chacha._KERNEL}\nint main() {{ int64_t given[6], made[8];"
        f"while (fread(given, 8, 6, stdin) == 6) {{ chacha20<int64_t>({arguments}, {outputs}); fwrite(made, 8, 8, stdout); }} }}"
    )
    subprocess.run([compiler, "-w", "-o", tmp_path / "kernel", tmp_path / "kernel.cpp"], check=True)
    for first in (0, 2**32 - 2, 2**40 + 5):
        key, nonce = os.urandom(32), os.urandom(8)
        given = b"".join((first + index).to_bytes(8, "little") + key + nonce for index in range(4))
        made = subprocess.run([tmp_path / "kernel"], input=given, capture_output=True, check=True).stdout
        assert made == as_bytes(chacha20_blocks(key, nonce, first, 4, "cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs a GPU")
def test_a_gpu_uses_the_kernel_and_it_is_chacha20() -> None:
    device = torch.device("cuda")
    assert chacha._blocks_on(device) is chacha._kernel_blocks
    key, nonce, first = os.urandom(32), os.urandom(8), 2**32 - 500
    cipher = Cipher(algorithms.ChaCha20(key, first.to_bytes(8, "little") + nonce), mode=None).encryptor()
    made = chacha._kernel_blocks(key, nonce, first, 1000, device)
    assert (made.device.type, made.shape) == ("cuda", (1000, 16))
    assert as_bytes(made) == cipher.update(bytes(64 * 1000))
