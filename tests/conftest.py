"""Fixtures that several packages' tests share: a small base model and a small cohort, both made in memory."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def loggers_are_left_as_found() -> Iterator[None]:
    """A test that leaves one of our loggers silent would fail those that come after it in its process, hours later."""
    before = _our_loggers()
    yield
    after = _our_loggers()
    assert {name: after[name] for name in before} == before
    new = {name: state for name, state in after.items() if name not in before}
    assert all(state == (logging.NOTSET, True, False, []) for state in new.values()), new


def _our_loggers() -> dict[str, tuple[int, bool, bool, list[logging.Handler]]]:
    """Level, propagation, disabled and handlers, by name."""
    found = {name: logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("fedmed")}
    return {name: (log.level, log.propagate, log.disabled, list(log.handlers)) for name, log in found.items()}


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
