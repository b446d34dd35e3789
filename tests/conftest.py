"""Fixtures that several packages' tests share: a small base model and a small cohort, both made in memory."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from fedmed.data.manifest import Manifest, write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.models.base import BaseModel
from fedmed.models.tiny import build_model, build_processor

# A test run in a shell's background has SIGINT ignored and would hand that on to every process it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, str(Path(__file__).parent))  # tests/helpers_*.py: importlib mode does not put them on the path

from helpers_device import DEVICE


@pytest.fixture
def tiny_base() -> BaseModel:
    """The architecture of fedmed-tiny with random weights: fresh for each test, which may change it."""
    processor = build_processor(["Is there an opacity? yes no left right one two three. The heart is normal."] * 4)
    model = build_model(len(processor.tokenizer), seed=0).eval()
    model.requires_grad_(False)
    return BaseModel("tiny-random", "0" * 64, model.to(DEVICE), processor)


@pytest.fixture(scope="session")
def phantom_manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Twelve phantom patients with several records each, on disk."""
    folder: Path = tmp_path_factory.mktemp("phantoms")
    return write_manifest(folder / "site", phantom_examples(12, 0, domain="hospital", split="train"))
