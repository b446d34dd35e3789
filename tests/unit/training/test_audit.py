"""The whole audit, small and seeded: a healthy engine passes, too little noise is flagged, nonsense is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedmed.errors import PrivacyError
from fedmed.models.base import BaseModel
from fedmed.privacy.random import InsecureSeededRandom
from fedmed.training.audit import audit
from fedmed.training.audit_faults import FAULTS
from fedmed.training.audited_site import AuditSetting
from fedmed.training.canaries import amounts, canary_examples

SETTING = AuditSetting(repetitions=24, canaries=12, records=1, noise_multipliers=(1.0,))


def test_a_healthy_engine_passes_with_a_bound_above_zero(tiny_base: BaseModel) -> None:
    result = audit(tiny_base, SETTING, InsecureSeededRandom(0))
    assert 0.3 < result.lower_bound < result.claimed_epsilon < 4.5
    assert not result.flagged
    assert not any("lora" in name for name, _ in tiny_base.model.named_parameters())


def test_noise_four_times_too_small_is_flagged(tiny_base: BaseModel) -> None:
    result = audit(tiny_base, SETTING, InsecureSeededRandom(0), FAULTS["noise_quarter"])
    assert result.flagged
    assert result.right_of_all > 0.85


@pytest.mark.parametrize(
    "change", [{"repetitions": 0}, {"records": 0}, {"noise_multipliers": (1.0, 0.0)}, {"confidence": 1.0}]
)
def test_nonsense_is_refused(tiny_base: BaseModel, change: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError, match=f"audit {next(iter(change))}="):
        audit(tiny_base, replace(SETTING, **change), InsecureSeededRandom(0))


def test_canaries_differ_and_their_records_do_not() -> None:
    examples = canary_examples(patients=5, records=3)
    assert examples == canary_examples(patients=5, records=3)
    texts = {(example.patient, example.question, example.answer, example.images[0].data) for example in examples}
    assert len(examples) == 15 and len(texts) == 5
    assert all(len({text[part] for text in texts}) == 5 for part in range(4))


def test_amounts_undo_a_sum() -> None:
    directions = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    included = torch.tensor([1.0, 0.0, 0.0, 2.0], dtype=torch.float64)
    assert torch.allclose(amounts(directions, included @ directions), included)
