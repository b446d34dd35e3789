"""The CLIP-to-prefix architecture: made of parts on disk, stored, read, adapted, merged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_architectures import TEXTS, mapper_base
from helpers_device import DEVICE
from helpers_training import mixed_cohort, random_state
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from typer.testing import CliRunner

from aggregator.cli import app
from fedmed.data.collate import Collator
from fedmed.data.manifest import load_manifest
from fedmed.errors import ModelError
from fedmed.messages import LoraSpec
from fedmed.models.adapter import adapter_state, add_adapter, load_adapter_state, remove_adapter
from fedmed.models.base import BaseModel, load_base
from fedmed.models.mapper import MapperConfig
from fedmed.models.mapper_build import build_mapper
from fedmed.models.merge import merge_adapter, save_merged
from fedmed.models.prompts import adapted_processor
from fedmed.models.tiny import build_processor
from fedmed.models.virtual import vocabulary_rows
from fedmed.training.evaluate import generate_answers

SIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SIDE | {"image_size": 28, "patch_size": 14}
SPEC = LoraSpec(3, 6.0, ("language_model",), ("all-linear",), ("multi_modal_projector",))


def save_tower(kind: str, folder: Path) -> Path:
    """A random vision tower of 28 x 28 pixels with its image processor."""
    torch.manual_seed(1)
    if kind == "clip_of_two_sides":
        text = SIDE | {"vocab_size": 50, "max_position_embeddings": 8}
        CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)).save_pretrained(folder)
    elif kind == "siglip":
        SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(folder)
    else:
        CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(folder)
    build_processor(TEXTS).image_processor.save_pretrained(folder)
    return folder


def save_decoder(folder: Path, *, tied: bool = True, kind: str = "llama") -> Path:
    """A random decoder whose tokenizer knows no images and no turns."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    ids = {
        "vocab_size": len(plain),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": tied,
    }
    torch.manual_seed(2)
    if kind == "llama":
        LlamaForCausalLM(LlamaConfig(**SIDE, **ids, num_key_value_heads=2)).save_pretrained(folder)
    else:
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=128, **ids)).save_pretrained(folder)
    plain.save_pretrained(folder)
    return folder


def batch_of(base: BaseModel, folder: Path) -> tuple[Any, Any, Any]:
    cohort = mixed_cohort(folder)
    images = [cohort.images(example) for example in cohort.examples]
    return Collator(base.processor, 512).train_batch(cohort.examples, images).to(DEVICE), cohort.examples, images


def test_a_base_of_fedmed_tinys_parts(tmp_path: Path) -> None:
    made = CliRunner().invoke(
        app, ["base", "mapper", "fedmed-tiny", "fedmed-tiny", str(tmp_path / "base"), "--hidden", "48"]
    )
    assert made.exit_code == 0, made.output
    tiny, base = load_base("fedmed-tiny"), load_base(str(tmp_path / "base"))
    assert base.sha256 in made.output and f"of {96 * 48 + 48 + 48 * 1024 + 1024} untrained" in made.output
    old, new = (dict(own.model.named_parameters()) for own in (tiny, base))
    mapper = {key for key in new if "multi_modal_projector" in key}
    assert len(mapper) == 4 and set(new) - mapper == {key for key in old if "multi_modal_projector" not in key}
    assert all(torch.equal(new[key], old[key]) for key in set(new) - mapper)
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight

    batch, _, _ = batch_of(base, tmp_path / "site")
    tokens = batch.inputs["input_ids"][1]
    assert int((tokens == base.processor.image_token_id).sum()) == 8 * int((batch.image_owner == 1).sum())
    text = base.processor.tokenizer.decode(tokens)
    assert text.startswith("<s><|user|>" + 8 * "<image>")
    build_mapper("fedmed-tiny", "fedmed-tiny", tmp_path / "again", sizes=[48])
    build_mapper("fedmed-tiny", "fedmed-tiny", tmp_path / "other", sizes=[48], seed=1)
    same, other = (load_base(str(tmp_path / name)).sha256 == base.sha256 for name in ("again", "other"))
    assert same and not other


@pytest.mark.parametrize("kind", ["clip", "clip_of_two_sides", "siglip"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_base_of_a_tower_and_a_decoder_without_images(kind: str, tied: bool, tmp_path: Path) -> None:
    tower, decoder = save_tower(kind, tmp_path / "vision"), save_decoder(tmp_path / "decoder", tied=tied)
    count = build_mapper(str(tower), str(decoder), tmp_path / "base", prefix_length=4)
    assert count == 32 * 64 + 64 + 64 * 128 + 128 + 128 * 128 + 128  # k w / 2 and k w
    base = load_base(str(tmp_path / "base"))
    assert (base.model.lm_head.weight is base.model.get_input_embeddings().weight) == tied
    batch, examples, images = batch_of(base, tmp_path / "site")
    marker = base.processor.image_token_id
    assert marker == len(base.processor.tokenizer) - 1
    text = base.processor.tokenizer.decode(batch.inputs["input_ids"][1][batch.inputs["attention_mask"][1].bool()])
    assert text.startswith("<s>question: ") and f" context: {4 * '<image>'}" in text and text.endswith("</s>")
    assert " answer: no" in text
    logits = base.model(**batch.inputs).logits
    darker = batch.inputs | {"pixel_values": batch.inputs["pixel_values"] - 1}
    seen = (base.model(**darker).logits - logits).abs().amax(dim=(1, 2)) > 1e-6
    assert seen.tolist() == [bool(own) for own in images]  # the image reaches its own example, and no other
    answers = generate_answers(base, base.processor, examples, images, batch_size=4, max_new_tokens=3)
    assert len(answers) == len(examples) and base.model.generation_config.suppress_tokens == [marker]


def test_a_decoder_of_the_published_family(tmp_path: Path) -> None:
    """GPT-2, whose linear layers are transposed and whose head goes by another name than the embedding that it is."""
    tower, decoder = save_tower("clip", tmp_path / "vision"), save_decoder(tmp_path / "decoder", kind="gpt2")
    build_mapper(str(tower), str(decoder), tmp_path / "base", sizes=[8])
    base = load_base(str(tmp_path / "base"))
    batch, _, _ = batch_of(base, tmp_path / "site")
    reference = GPT2LMHeadModel.from_pretrained(tmp_path / "decoder")
    texts = [index for index in range(len(batch.labels)) if index not in batch.image_owner]
    inputs = {key: batch.inputs[key][texts] for key in ("input_ids", "attention_mask")}
    words = reference.config.vocab_size
    torch.testing.assert_close(base.model(**inputs).logits[..., :words], reference(**inputs).logits)
    spec = replace(SPEC, targets=("c_attn", "wpe"), virtual_tokens=3)
    with torch.no_grad():
        check_merged(base, spec, cohort_inputs(base, spec, tmp_path / "site"), tmp_path)
    with pytest.raises(ModelError, match=r"c_attn.*expected k_proj and v_proj"):
        add_adapter(base.model, replace(spec, virtual_kind="prefix"), 0)


@torch.no_grad()
def test_merged_and_stored_models_give_the_adapters_logits(tmp_path: Path) -> None:
    base = mapper_base()
    mixed_cohort(tmp_path / "site")
    check_merged(base, SPEC, cohort_inputs(base, SPEC, tmp_path / "site"), tmp_path)
    state = adapter_state(add_adapter(base.model, SPEC, 0))
    assert {key for key in state if "lora" not in key} == {
        f"model.multi_modal_projector.{layer}.{name}" for layer in (0, 2) for name in ("weight", "bias")
    }


def cohort_inputs(base: BaseModel, spec: LoraSpec, folder: Path) -> Any:
    cohort = load_manifest(folder)
    images = [cohort.images(example) for example in cohort.examples]
    return Collator(adapted_processor(base, spec), 128).train_batch(cohort.examples, images).to(DEVICE).inputs


def check_merged(base: BaseModel, spec: LoraSpec, inputs: Any, folder: Path) -> None:
    """That the adapter does something, and that the merged and the stored model do the same."""
    words = inputs["input_ids"].masked_fill(inputs["input_ids"] >= vocabulary_rows(base.model), 0)
    plain = base.model(**inputs | {"input_ids": words}).logits
    model = add_adapter(base.model, spec, 0)
    start = adapter_state(model)
    state = {key: start[key] + value for key, value in random_state(start).items()}
    load_adapter_state(model, state)
    expected = model(**inputs).logits
    assert float((expected - plain).abs().max()) > 0.05
    merged = merge_adapter(base, spec, state)
    assert float((merged(**inputs).logits[..., : expected.shape[-1]] - expected).abs().max()) < 1e-4
    save_merged(merged, adapted_processor(base, spec), folder / "merged")
    stored = load_base(str(folder / "merged"), device=DEVICE.type)
    assert float((stored.model(**inputs).logits[..., : expected.shape[-1]] - expected).abs().max()) < 1e-4
    remove_adapter(model)


def test_what_a_base_cannot_be_made_of_is_named(tmp_path: Path) -> None:
    tower, decoder = save_tower("clip", tmp_path / "vision"), save_decoder(tmp_path / "decoder")
    for vision, language, words in [
        (str(tmp_path / "nowhere"), str(decoder), "is not on this disk"),
        (str(decoder), str(decoder), "decoder' cannot be loaded"),
        (str(tower), str(tower), "vision' cannot be loaded"),
    ]:
        with pytest.raises(ModelError, match=words):
            build_mapper(vision, language, tmp_path / "base")
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="cannot be loaded"):  # without its image processor
        build_mapper(str(tmp_path / "bare"), str(decoder), tmp_path / "base")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(decoder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(decoder)
    with pytest.raises(ModelError, match="no end token"):
        build_mapper(str(tower), str(decoder), tmp_path / "base")
    with pytest.raises(ModelError, match="exists already"):
        build_mapper(str(tower), str(decoder), tmp_path / "vision")
    assert not (tmp_path / "base").exists()


def test_the_published_sizes() -> None:
    """GPT2-XL behind CLIP ViT-B: 8 tokens of width 1600."""
    config = MapperConfig(text_config={"model_type": "gpt2", "n_embd": 1600})
    assert config.hidden_sizes == [6400, 12800]
