"""A merged model gives the logits of base plus adapter, also after saving and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers_device import DEVICE
from helpers_training import EVERYWHERE, mixed_cohort, random_state

from fedmed.data.collate import Collator
from fedmed.errors import ModelError
from fedmed.models.adapter import adapter_state, add_adapter, load_adapter_state, remove_adapter
from fedmed.models.base import BaseModel, load_base
from fedmed.models.merge import merge_adapter, save_merged


@torch.no_grad()
def test_merged_logits_equal_adapter_logits(tiny_base: BaseModel, tmp_path: Path) -> None:
    manifest = mixed_cohort(tmp_path / "site")
    collator = Collator(tiny_base.processor, 512)
    batch = collator.train_batch(manifest.examples, [manifest.images(item) for item in manifest.examples])
    inputs = batch.to(DEVICE).inputs
    plain = tiny_base.model(**inputs).logits
    model = add_adapter(tiny_base.model, EVERYWHERE, 0)
    state = random_state(adapter_state(model))
    load_adapter_state(model, state)
    expected = model(**inputs).logits
    assert float((expected - plain).abs().max()) > 0.1  # the adapter does something

    merged = merge_adapter(tiny_base, EVERYWHERE, state)  # from a base that carries the adapter
    assert float((merged(**inputs).logits - expected).abs().max()) < 1e-4
    assert not any("lora" in name for name, _ in merged.named_modules())
    save_merged(merged, tiny_base.processor, tmp_path / "merged")
    reloaded = load_base(str(tmp_path / "merged"), device=DEVICE.type)
    again = Collator(reloaded.processor, 512).train_batch(
        manifest.examples, [manifest.images(item) for item in manifest.examples]
    )
    assert float((reloaded.model(**again.to(DEVICE).inputs).logits - expected).abs().max()) < 1e-4

    remove_adapter(model)
    merged = merge_adapter(tiny_base, EVERYWHERE, state)  # from a plain base
    assert float((merged(**inputs).logits - expected).abs().max()) < 1e-4
    assert torch.equal(tiny_base.model(**inputs).logits, plain)  # which is not changed


def test_an_incomplete_adapter_is_refused(tiny_base: BaseModel) -> None:
    model = add_adapter(tiny_base.model, EVERYWHERE, 0)
    state = adapter_state(model)
    remove_adapter(model)
    last = sorted(state)[-1]
    with pytest.raises(ModelError, match="missing"):
        merge_adapter(tiny_base, EVERYWHERE, {key: value for key, value in state.items() if key != last})
    with pytest.raises(ModelError, match="shapes"):
        merge_adapter(tiny_base, EVERYWHERE, {**state, last: torch.zeros(3, 4)})
    with pytest.raises(ModelError, match="no such layer"):
        merge_adapter(tiny_base, EVERYWHERE, {"model.nowhere.lora_A.weight": torch.zeros(4, 4)})
