"""Adapters beyond linear layers: convolutions, embeddings, modules trained whole. First values, keys, wire, merging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers_architectures import ALL_KINDS, BASES, PARTS
from helpers_device import DEVICE
from helpers_training import mixed_cohort, random_state
from peft import PeftModel

from fedmed.data.collate import Collator
from fedmed.errors import ModelError
from fedmed.messages import LoraSpec
from fedmed.models.adapter import (
    adapter_parameters,
    adapter_state,
    add_adapter,
    decode_state,
    encode_state,
    load_adapter_state,
    remove_adapter,
    state_sha256,
)
from fedmed.models.base import BaseModel
from fedmed.models.kinds import PLAIN, kind_of
from fedmed.models.merge import merge_adapter, save_merged, save_peft_adapter

LLAVA = ALL_KINDS["llava"]
EMBED = "model.language_model.embed_tokens"


@pytest.mark.parametrize("name", ALL_KINDS)
@torch.no_grad()
def test_a_merged_model_and_a_reread_adapter_give_the_adapters_logits(name: str, tmp_path: Path) -> None:
    base, spec = BASES[name](), ALL_KINDS[name]
    manifest = mixed_cohort(tmp_path / "site")
    examples = manifest.examples[:5]
    batch = Collator(base.processor, 512).train_batch(examples, [manifest.images(item) for item in examples])
    inputs = batch.to(DEVICE).inputs
    plain = base.model(**inputs).logits
    model = add_adapter(base.model, spec, 0)
    start = adapter_state(model)
    torch.testing.assert_close(model(**inputs).logits, plain)  # B is zero, saved modules are the base's
    state = {key: start[key] + value for key, value in random_state(start).items()}
    load_adapter_state(model, decode_state(encode_state(state, "float32")))
    expected = model(**inputs).logits
    assert float((expected - plain).abs().max()) > 0.05

    merged = merge_adapter(base, spec, state)
    assert float((merged(**inputs).logits - expected).abs().max()) < 1e-4
    save_merged(merged, base.processor, tmp_path / "merged")
    reread = type(merged).from_pretrained(tmp_path / "merged").to(DEVICE)
    assert float((reread(**inputs).logits - expected).abs().max()) < 1e-4

    remove_adapter(model)
    assert torch.equal(base.model(**inputs).logits, plain)  # the base is as it was, tied weights too
    save_peft_adapter(tmp_path / "adapter", spec, state, base.name)
    exported = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter"))
    assert float((exported(**inputs).logits - expected).abs().max()) < 1e-4


def test_keys_kinds_and_first_values(tiny_base: BaseModel) -> None:
    weight = dict(tiny_base.model.named_parameters())
    before = {key: value.clone() for key, value in weight.items()}
    model = add_adapter(tiny_base.model, LLAVA, seed=7)
    state = adapter_state(model)
    conv = "model.vision_tower.embeddings.patch_embedding"
    rank, width = LLAVA.rank, weight[f"{conv}.weight"].shape[0]
    assert state[f"{conv}.lora_A.weight"].shape == (rank, *weight[f"{conv}.weight"].shape[1:])
    assert state[f"{conv}.lora_B.weight"].shape == (width, rank, 1, 1)
    words, hidden = weight[f"{EMBED}.weight"].shape
    assert state[f"{EMBED}.lora_embedding_A"].shape == (rank, words)
    assert state[f"{EMBED}.lora_embedding_B"].shape == (hidden, rank)
    saved = {key for key in state if kind_of(key) == "saved"}
    projector = "model.multi_modal_projector"
    assert saved == {"lm_head.weight", f"{projector}.linear_2.weight", f"{projector}.linear_2.bias"}
    for key, value in state.items():
        if kind_of(key) == "lora_B":
            assert not value.any()
        elif kind_of(key) == "lora_A":  # Kaiming uniform's bound; an embedding's input is one word
            inputs = 1 if "embedding_A" in key else value[0].numel()
            assert 0.9 < float(value.abs().max()) * inputs**0.5 <= 1.0
    assert torch.equal(state["lm_head.weight"], before[f"{EMBED}.weight"].cpu())
    assert [len(adapter_parameters(model, (kind,))) for kind in PLAIN] == [3, 3, 3]
    load_adapter_state(model, random_state(state))
    remove_adapter(model)
    assert state_sha256(adapter_state(add_adapter(tiny_base.model, LLAVA, seed=7))) == state_sha256(state)


def test_all_of_a_part_can_be_trained_whole_without_lora(tiny_base: BaseModel, tmp_path: Path) -> None:
    align = LoraSpec(4, 8.0, ("projector",), ("all-linear",), ("multi_modal_projector",))
    tiny_base.model.to(torch.bfloat16)
    model = add_adapter(tiny_base.model, align, 0)
    state = adapter_state(model)
    assert {kind_of(key) for key in state} == {"saved"} and len(state) == 4
    assert {parameter.dtype for parameter in adapter_parameters(model).values()} == {torch.float32}
    assert {name for name, own in model.named_parameters() if own.requires_grad} == {
        f"base_model.model.{key.replace('projector.', 'projector.modules_to_save.default.')}" for key in state
    }
    save_peft_adapter(tmp_path, align, state, "tiny")
    remove_adapter(model)
    PeftModel.from_pretrained(tiny_base.model, str(tmp_path))


@pytest.mark.parametrize(
    ("targets", "saved", "words"),
    [
        (("q_proj",), ("nowhere",), "'nowhere' matches no module with weights"),
        (("linear_1",), ("multi_modal_projector",), "'linear_1' matches no linear"),
        (("class_embedding",), (), "'class_embedding' matches no linear, convolution or embedding layer"),
        (("q_proj",), ("model",), "model belongs to no part"),
    ],
)
def test_what_cannot_be_adapted_is_named(
    tiny_base: BaseModel, targets: tuple[str, ...], saved: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        add_adapter(tiny_base.model, LoraSpec(4, 8.0, PARTS, targets, saved), 0)


def test_a_convolution_that_lora_cannot_follow_is_not_taken(tiny_base: BaseModel) -> None:
    embeddings = tiny_base.model.model.vision_tower.embeddings
    embeddings.patch_embedding = torch.nn.Conv2d(3, 96, 4, stride=4, dilation=2)
    with pytest.raises(ModelError, match="'patch_embedding' matches no"):
        add_adapter(tiny_base.model, LoraSpec(4, 8.0, PARTS, ("patch_embedding",)), 0)


def test_a_whole_adapter_has_its_saved_modules(tiny_base: BaseModel) -> None:
    model = add_adapter(tiny_base.model, LLAVA, 0)
    state = adapter_state(model)
    remove_adapter(model)
    with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
        merge_adapter(tiny_base, LLAVA, {key: value for key, value in state.items() if key != "lm_head.weight"})
    with pytest.raises(ModelError, match=r"norm\.weight is not in a module of"):
        merge_adapter(tiny_base, LLAVA, {**state, "model.language_model.norm.weight": torch.ones(128)})
    with pytest.raises(ModelError, match=r"lm_head\.weight has shape"):
        merge_adapter(tiny_base, LLAVA, {**state, "lm_head.weight": torch.ones(3)})
