"""Adapters: where they sit, their first values, their tensors on the wire."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from helpers_training import EVERYWHERE
from peft.tuners.lora.layer import Linear as LoraLinear
from safetensors.torch import save
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, PreTrainedModel
from transformers import Qwen2_5_VLConfig as QwenConfig
from transformers import Qwen2_5_VLForConditionalGeneration as Qwen

from fedmed.errors import ModelError, WireError
from fedmed.messages import LoraSpec
from fedmed.models.adapter import (
    adapter_parameters,
    adapter_state,
    add_adapter,
    check_state,
    decode_state,
    find_targets,
    load_adapter_state,
    remove_adapter,
    state_sha256,
)
from fedmed.models.base import BaseModel
from fedmed.models.kinds import part_of

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 99}


def idefics3() -> PreTrainedModel:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=vision | {"image_size": 16, "patch_size": 4},
            text_config=TEXT | {"model_type": "llama", "num_key_value_heads": 2, "pad_token_id": 0},
            image_token_id=98,
            scale_factor=2,
        )
    )


def qwen() -> PreTrainedModel:
    vision = {"hidden_size": 32, "intermediate_size": 48, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
    rope = {"type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    text = TEXT | {"num_key_value_heads": 2, "rope_parameters": rope}
    return Qwen(QwenConfig(vision_config=vision, text_config=text, image_token_id=98, video_token_id=97))


@pytest.mark.parametrize("build", [idefics3, qwen])
def test_parts_are_found_in_other_architectures(build: object) -> None:
    model = build()  # type: ignore[operator]
    for part in EVERYWHERE.parts:
        targets = find_targets(model, replace(EVERYWHERE, parts=(part,)))
        assert targets and all(part_of(target) == part for target in targets)
    everything = find_targets(model, EVERYWHERE)
    assert not any("lm_head" in target for target in everything)
    adapted = add_adapter(model, EVERYWHERE, 0)
    assert {key.rsplit(".lora_", 1)[0] for key in adapter_state(adapted)} == set(everything)


def test_the_same_seed_gives_the_same_adapter(tiny_base: BaseModel) -> None:
    states = []
    for seed, noise in ((7, 1), (7, 2), (8, 1)):
        torch.manual_seed(noise)  # the global generator has no say
        before = torch.random.get_rng_state()
        model = add_adapter(tiny_base.model, EVERYWHERE, seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append(adapter_state(model))
        remove_adapter(model)
    assert state_sha256(states[0]) == state_sha256(states[1]) != state_sha256(states[2])
    for key, value in states[0].items():
        if key.endswith("lora_B.weight"):
            assert not value.any()
        else:
            assert 0.9 < float(value.abs().max()) * value.shape[1] ** 0.5 <= 1.0  # Kaiming uniform's bound


def test_known_first_values() -> None:
    # What a seed means must not change from release to release: sites of several releases draw the same A.
    drawn = torch.rand(3, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    assert drawn.tolist() == pytest.approx([0.4962565899, 0.7682217956, 0.0884774327], abs=1e-9)


def test_the_adapter_is_float32_and_alone_trainable(tiny_base: BaseModel) -> None:
    model = add_adapter(tiny_base.model.to(torch.bfloat16), EVERYWHERE, 0)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == len(adapter_parameters(model)) and all(".lora_" in name for name in trainable)
    assert {parameter.dtype for parameter in adapter_parameters(model).values()} == {torch.float32}


def test_keys_are_plain_paths_and_endings_filter(tiny_base: BaseModel) -> None:
    model = add_adapter(tiny_base.model, replace(EVERYWHERE, parts=("projector",), targets=("linear_1",)), 0)
    prefix = "model.multi_modal_projector.linear_1"
    assert list(adapter_state(model)) == [f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"]
    assert list(adapter_state(model, ("lora_B",))) == [f"{prefix}.lora_B.weight"]
    assert adapter_state(model)[f"{prefix}.lora_A.weight"].shape[0] == EVERYWHERE.rank


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (LoraSpec(4, 8.0, ("language_model",), ("nowhere_proj",)), "nowhere_proj"),
        (LoraSpec(4, 8.0, ("projector",), ("q_proj",)), "q_proj"),
    ],
)
def test_targets_that_match_nothing_are_named(tiny_base: BaseModel, spec: LoraSpec, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        add_adapter(tiny_base.model, spec, 0)


def test_a_second_adapter_is_refused(tiny_base: BaseModel) -> None:
    add_adapter(tiny_base.model, EVERYWHERE, 0)
    with pytest.raises(ModelError, match="already"):
        add_adapter(tiny_base.model, EVERYWHERE, 0)


@pytest.mark.parametrize("after", [0, 1, 7])
def test_an_adapter_that_runs_out_of_memory_leaves_the_plain_model(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """As on a GPU that another process fills: so many layers have their adapter, the next has no room."""
    names = {name for name, _ in tiny_base.model.named_modules()}
    update, calls = LoraLinear.update_layer, itertools.count()

    def limited(*arguments: object, **options: object) -> None:
        if next(calls) == after:
            raise torch.OutOfMemoryError("CUDA out of memory")
        update(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LoraLinear, "update_layer", limited)
        with pytest.raises(torch.OutOfMemoryError):
            add_adapter(tiny_base.model, EVERYWHERE, 0)
    assert {name for name, _ in tiny_base.model.named_modules()} == names
    assert adapter_state(add_adapter(tiny_base.model, EVERYWHERE, 0))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not safetensors at all",
        save({"a.lora_A.weight": torch.zeros(2, 2)})[:-3],
        save({"../something else": torch.zeros(2, 2)}),
        save({"something.else": torch.zeros(())}),
        save({"a.lora_A.weight": torch.zeros(2, 2, dtype=torch.float64)}),
        save({"a.lora_A.weight": torch.zeros(2, 2, 2)}),
    ],
)
def test_a_payload_that_is_no_adapter_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_state(payload)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ModelError, match=r"a\.lora_A\.weight.*not finite"):
        decode_state(save({"a.lora_A.weight": torch.full((2, 2), bad)}))


def test_a_state_is_compared_before_anything_is_written(tiny_base: BaseModel) -> None:
    model = add_adapter(tiny_base.model, EVERYWHERE, 0)
    state = adapter_state(model)
    first, last = sorted(state)[0], sorted(state)[-1]
    with pytest.raises(ModelError, match="shape"):
        load_adapter_state(model, {first: torch.ones_like(state[first]), last: torch.zeros(1, 1)})
    with pytest.raises(ModelError, match="nowhere"):
        load_adapter_state(model, {first: torch.ones_like(state[first]), "nowhere.lora_A.weight": torch.zeros(1, 1)})
    assert state_sha256(adapter_state(model)) == state_sha256(state)
    load_adapter_state(model, {first: torch.ones_like(state[first])})  # a part of the adapter
    assert bool((adapter_state(model)[first] == 1).all())


def test_check_state_names_what_is_wrong() -> None:
    like = {"a.lora_A.weight": torch.zeros(2, 3), "a.lora_B.weight": torch.zeros(3, 2)}
    check_state(like, like)
    with pytest.raises(ModelError, match="missing"):
        check_state({"a.lora_A.weight": torch.zeros(2, 3)}, like)
    with pytest.raises(ModelError, match="not asked for"):
        check_state({**like, "b.lora_A.weight": torch.zeros(1, 1)}, like)
    with pytest.raises(ModelError, match=r"\[3, 2\], expected \[2, 3\]"):
        check_state({**like, "a.lora_A.weight": torch.zeros(3, 2)}, like)
