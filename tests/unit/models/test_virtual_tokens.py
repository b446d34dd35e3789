"""Prompt and prefix tuning: where the tokens stand, first values, merged and stored models, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_architectures import BASES, PARTS, idefics3_base
from helpers_device import DEVICE
from helpers_training import mixed_cohort, random_state
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from fedmed.data.collate import Collator
from fedmed.data.manifest import Manifest
from fedmed.errors import ModelError
from fedmed.messages import LoraSpec
from fedmed.models.adapter import State, adapter_state, add_adapter, load_adapter_state, remove_adapter, reset_adapter
from fedmed.models.base import BaseModel, load_base
from fedmed.models.merge import merge_adapter, save_merged, save_peft_adapter
from fedmed.models.prompts import adapted_processor
from fedmed.training.evaluate import generate_answers

KINDS = ("prompt", "prefix")
COUNT = 5
WIDTH = 128  # of fedmed-tiny's embedding, keys and values
EMBED = "model.language_model.embed_tokens"


def alone(kind: str) -> LoraSpec:
    return LoraSpec(3, 6.0, ("language_model",), (), virtual_tokens=COUNT, virtual_kind=kind)


def beside_lora(kind: str) -> LoraSpec:
    return replace(alone(kind), parts=PARTS, targets=("k_proj", "embed_tokens", "fc1"))


def inputs_of(base: BaseModel, spec: LoraSpec, cohort: Manifest) -> dict[str, torch.Tensor]:
    examples = cohort.examples[:5]
    collator = Collator(adapted_processor(base, spec), 512)
    return collator.train_batch(examples, [cohort.images(item) for item in examples]).to(DEVICE).inputs


def trained(base: BaseModel, spec: LoraSpec) -> tuple[Any, State]:
    """The model with an adapter in which every tensor is elsewhere than at the start."""
    model = add_adapter(base.model, spec, 0)
    start = adapter_state(model)
    state = {key: start[key] + value for key, value in random_state(start).items()}
    load_adapter_state(model, state)
    return model, state


def answers_of(model: Any, processor: Any, cohort: Manifest) -> list[str]:
    examples = cohort.examples[:5]
    images = [cohort.images(item) for item in examples]
    return generate_answers(model, processor, examples, images, batch_size=5, max_new_tokens=6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BASES)
@torch.no_grad()
def test_a_merged_model_gives_the_adapters_logits_and_answers(name: str, kind: str, tmp_path: Path) -> None:
    base, cohort = BASES[name](), mixed_cohort(tmp_path / "site", [(28, 28), (28, 56)])
    spec = replace(beside_lora(kind), parts=("language_model",), targets=("k_proj", "embed_tokens"))
    plain = base.model(**inputs_of(base, replace(spec, virtual_tokens=0), cohort)).logits
    processor, inputs = adapted_processor(base, spec), inputs_of(base, spec, cohort)
    model, state = trained(base, spec)
    expected = model(**inputs).logits
    words = expected.shape[-1]
    without = {key: value * 0 if "virtual" in key else value for key, value in state.items()}
    load_adapter_state(model, without)
    assert float((model(**inputs).logits - expected).abs().max()) > 1e-3  # the tokens are read
    load_adapter_state(model, state)

    merged = merge_adapter(base, spec, state)
    assert float((merged(**inputs).logits[..., :words] - expected).abs().max()) < 1e-4
    assert answers_of(merged, processor, cohort) == answers_of(model, processor, cohort)
    remove_adapter(model)
    assert torch.equal(base.model(**inputs_of(base, replace(spec, virtual_tokens=0), cohort)).logits, plain)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_stored_model_gives_them_too(tiny_base: BaseModel, kind: str, tmp_path: Path) -> None:
    cohort, spec = mixed_cohort(tmp_path / "site"), beside_lora(kind)
    inputs, (model, state) = inputs_of(tiny_base, spec, cohort), trained(tiny_base, spec)
    expected = model(**inputs).logits
    save_merged(merge_adapter(tiny_base, spec, state), adapted_processor(tiny_base, spec), tmp_path / "merged")
    stored = load_base(str(tmp_path / "merged"), device=DEVICE.type)
    examples = cohort.examples[:5]
    again = Collator(stored.processor, 512).train_batch(examples, [cohort.images(item) for item in examples])
    assert torch.equal(again.to(DEVICE).inputs["input_ids"], inputs["input_ids"])
    found = stored.model(**again.to(DEVICE).inputs).logits[..., : expected.shape[-1]]
    assert float((found - expected).abs().max()) < 1e-4
    assert answers_of(stored, stored.processor, cohort) == answers_of(model, adapted_processor(tiny_base, spec), cohort)
    assert not any(parameter.requires_grad for parameter in stored.model.parameters())
    if kind == "prompt":  # a plain checkpoint, for any software
        AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
        return
    with pytest.raises(ValueError, match="PrefixConfig"):  # without FedMed the model type itself is unknown
        AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    for other in (spec, replace(spec, virtual_tokens=0, virtual_kind="prompt", targets=("q_proj",))):
        with pytest.raises(ModelError, match="has trained keys and values"):
            add_adapter(stored.model, other, 0)
    save_merged(stored.model, stored.processor, tmp_path / "again")
    assert load_file(tmp_path / "again" / "prefix.safetensors").keys() == {
        f"model.language_model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("k_proj", "v_proj")
    }


@torch.no_grad()
def test_of_a_prefix_other_tokens_see_the_keys_and_values_alone(tiny_base: BaseModel, tmp_path: Path) -> None:
    """What the model makes of a virtual token itself changes nothing anywhere else."""
    cohort, spec = mixed_cohort(tmp_path / "site"), alone("prefix")
    inputs = inputs_of(tiny_base, spec, cohort)
    merged = merge_adapter(tiny_base, spec, trained(tiny_base, spec)[1])
    words = inputs["input_ids"] < len(tiny_base.processor.tokenizer)
    before = merged(**inputs).logits[words]
    embedding = merged.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, ids, output: output + (~words).unsqueeze(-1) * 3.0)
    after = merged(**inputs)
    hook.remove()
    torch.testing.assert_close(after.logits[words], before)


@torch.no_grad()
def test_a_virtual_token_is_never_an_answer(tiny_base: BaseModel, tmp_path: Path) -> None:
    """Embedding and head are one tensor here: a large row is the likeliest answer wherever it points the right way."""
    cohort, spec = mixed_cohort(tmp_path / "site"), alone("prompt")
    inputs, words = inputs_of(tiny_base, spec, cohort), len(tiny_base.processor.tokenizer)
    model = add_adapter(tiny_base.model, spec, 0)
    state = adapter_state(model)
    hidden = model(**inputs, output_hidden_states=True).hidden_states[-1][:, -1]
    (key,) = state
    load_adapter_state(model, {key: 100 * hidden[:1].cpu().expand(COUNT, -1)})
    state = adapter_state(model)
    expected = answers_of(model, adapted_processor(tiny_base, spec), cohort)
    merged = merge_adapter(tiny_base, spec, state)
    assert int(merged(**inputs).logits[0, -1].argmax()) >= words  # it would be the answer
    assert answers_of(merged, adapted_processor(tiny_base, spec), cohort) == expected


def test_where_the_tokens_stand(tmp_path: Path) -> None:
    cohort = mixed_cohort(tmp_path / "site")
    example = cohort.examples[1]
    for name, make in BASES.items():
        base = make()
        rows, spec = base.model.get_input_embeddings().weight.shape[0], alone("prompt")
        plain, adapted = (
            Collator(processor, 512).encode(example, cohort.images(example))
            for processor in (base.processor, adapted_processor(base, spec))
        )
        after = 1 if name == "llava" else 0  # behind the start token, where the template writes one
        expected = [*plain.prompt[:after].tolist(), *range(rows, rows + COUNT), *plain.prompt[after:].tolist()]
        assert adapted.prompt.tolist() == expected
        assert adapted.answer.tolist() == plain.answer.tolist()
        assert adapted_processor(base, replace(spec, virtual_tokens=0)) is base.processor


def test_an_embedding_with_rows_to_spare_is_filled_up(tmp_path: Path) -> None:
    base, spec = idefics3_base(), alone("prompt")
    tokens = len(base.processor.tokenizer)
    base.model.resize_token_embeddings(tokens + 7)
    processor: Any = adapted_processor(base, spec)
    message = [
        {"role": "user", "content": [{"type": "text", "text": f"<|unused_{tokens}|> <|virtual_{tokens + 8}|>?"}]}
    ]
    text = processor.apply_chat_template(message, tokenize=False)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[:COUNT] == list(range(tokens + 7, tokens + 7 + COUNT)) and tokens in ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).split() == ["?"]
    # Neither name can be smuggled in: they are markup, which the collator takes out of texts and the server refuses.
    assert {f"<|unused_{tokens}|>", f"<|virtual_{tokens + 7}|>"} <= set(processor.tokenizer.all_special_tokens)
    base.model.resize_token_embeddings(tokens - 1)
    with pytest.raises(ModelError, match="expected no more"):
        adapted_processor(base, spec)


@torch.no_grad()
def test_keys_and_first_values(tiny_base: BaseModel) -> None:
    embedding = tiny_base.model.get_input_embeddings().weight
    model = add_adapter(tiny_base.model, alone("prompt"), seed=7)
    state = adapter_state(model)
    assert set(state) == {f"{EMBED}.virtual_tokens.weight"}
    ((key, table),) = state.items()
    assert all(any(torch.equal(row, word) for word in embedding.cpu()) for row in table)
    reset_adapter(model, 8)
    assert not torch.equal(adapter_state(model)[key], table)
    reset_adapter(model, 7)
    assert torch.equal(adapter_state(model)[key], table)
    remove_adapter(model)

    model = add_adapter(tiny_base.model, alone("prefix"), seed=7)
    state = adapter_state(model)
    layer = "model.language_model.layers.1.self_attn"
    assert len(state) == 4 and state[f"{layer}.k_proj.virtual_tokens.weight"].shape == (COUNT, WIDTH)
    assert {name for name, own in model.named_parameters() if own.requires_grad} == {
        f"base_model.model.{key}" for key in state
    }
    remove_adapter(model)
    # The same words, as the base reads them: their values in the second layer.
    words = torch.tensor([[next(i for i, word in enumerate(embedding) if torch.equal(word, row)) for row in table]])
    seen = []
    hook = tiny_base.model.get_submodule(f"{layer}.v_proj").register_forward_hook(lambda *call: seen.append(call[-1]))
    tiny_base.model(input_ids=words.to(DEVICE))
    hook.remove()
    torch.testing.assert_close(seen[0][0].cpu(), state[f"{layer}.v_proj.virtual_tokens.weight"])


def test_lora_keys_do_not_know_of_the_tokens_beside_them(tiny_base: BaseModel) -> None:
    for kind in KINDS:
        model = add_adapter(tiny_base.model, beside_lora(kind), 0)
        with_tokens = {key: value for key, value in adapter_state(model).items() if "virtual" not in key}
        remove_adapter(model)
        model = add_adapter(tiny_base.model, replace(beside_lora(kind), virtual_tokens=0), 0)
        torch.testing.assert_close(adapter_state(model), with_tokens, rtol=0, atol=0)
        remove_adapter(model)


def test_the_adapter_folder_keeps_the_tables(tiny_base: BaseModel, tmp_path: Path) -> None:
    spec = beside_lora("prefix")
    _, state = trained(tiny_base, spec)
    save_peft_adapter(tmp_path, spec, state, "tiny")
    tables = {key: value for key, value in state.items() if "virtual" in key}
    torch.testing.assert_close(load_file(tmp_path / "virtual_tokens.safetensors"), tables, rtol=0, atol=0)
    assert not any("virtual" in key for key in load_file(tmp_path / "adapter_model.safetensors"))


def test_what_cannot_have_them_is_named(tiny_base: BaseModel, tmp_path: Path) -> None:
    inside = replace(alone("prefix"), modules_to_save=("self_attn",))
    with pytest.raises(ModelError, match="self_attn holds layers of virtual tokens"):
        add_adapter(tiny_base.model, inside, 0)
    _, state = trained(tiny_base, alone("prompt"))
    (key,) = state
    for wrong, words in [
        ({}, "virtual_tokens.weight is missing"),
        ({key: torch.zeros(2, WIDTH)}, r"shape \[2, 128\], expected \[5, 128\]"),
        (state | {"model.lm_head.virtual_tokens.weight": state[key]}, "was not asked for"),
    ]:
        with pytest.raises(ModelError, match=words):
            merge_adapter(tiny_base, alone("prompt"), wrong)
    tiny_base.processor.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        adapted_processor(tiny_base, alone("prompt"))


def test_a_decoder_without_k_proj_takes_no_prefix(tiny_base: BaseModel) -> None:
    for layer in tiny_base.model.model.language_model.layers:
        layer.self_attn.qkv_proj = layer.self_attn.__dict__["_modules"].pop("k_proj")
        del layer.self_attn.v_proj
    with pytest.raises(ModelError, match=r"'qkv_proj', 'up_proj'\], expected k_proj and v_proj"):
        add_adapter(tiny_base.model, alone("prefix"), 0)


def test_a_prefix_folder_that_is_not_whole_is_named(tiny_base: BaseModel, tmp_path: Path) -> None:
    spec = alone("prefix")
    _, state = trained(tiny_base, spec)
    save_merged(merge_adapter(tiny_base, spec, state), adapted_processor(tiny_base, spec), tmp_path)
    tables = load_file(tmp_path / "prefix.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["base"]["model_type"] == "llava"
    (tmp_path / "prefix.safetensors").unlink()
    with pytest.raises(ModelError, match="prefix's keys and values"):
        load_base(str(tmp_path))
    save_file({f"{path}.lora": value for path, value in tables.items()}, tmp_path / "prefix.safetensors")
    with pytest.raises(ModelError, match="is no layer of this model"):
        load_base(str(tmp_path))


def test_activations_without_ids_are_refused(tiny_base: BaseModel, tmp_path: Path) -> None:
    cohort = mixed_cohort(tmp_path / "site")
    model = add_adapter(tiny_base.model, alone("prefix"), 0)
    model(**inputs_of(tiny_base, alone("prefix"), cohort))
    with pytest.raises(ModelError, match=r"activations \[1, 4, 128\] for"):
        model(inputs_embeds=torch.zeros(1, 4, WIDTH, device=DEVICE))
