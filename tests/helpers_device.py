"""Where the tests' models are, and which devices there are. Import as `helpers_device` (see tests/conftest.py).

    FEDMED_TEST_DEVICE=cuda python -m pytest tests/unit/privacy tests/unit/training tests/unit/models tests/parity

The small models of the tests are on the CPU unless the environment says otherwise: the same properties then hold, or do
not, for the site's path on a GPU. What a test compares with is computed on the same device.
"""

from __future__ import annotations

import os

import torch

from fedmed.models.base import compute_in_float32

DEVICE = torch.device(os.environ.get("FEDMED_TEST_DEVICE", "cpu"))
DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
if DEVICE.type == "cuda":
    compute_in_float32()  # as load_base does, which most tests' models do not pass
