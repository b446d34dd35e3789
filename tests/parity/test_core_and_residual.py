"""Adapters with a core R and with residuals: forward pass, merged model and exported adapter are W0 + U D + s B R A."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_architectures import ALL_KINDS, BASES
from helpers_device import DEVICE
from helpers_training import EVERYWHERE, mixed_cohort, plan, random_state
from peft import PeftModel
from torch import Tensor, nn

from fedmed.data.collate import Collator
from fedmed.errors import ModelError
from fedmed.messages import LoraSpec
from fedmed.models.adapter import (
    State,
    adapter_parameters,
    adapter_state,
    add_adapter,
    decode_state,
    encode_state,
    find_targets,
    load_adapter_state,
    remove_adapter,
    state_sha256,
)
from fedmed.models.base import BaseModel, load_base
from fedmed.models.kinds import SAVED, kind_of
from fedmed.models.merge import merge_adapter, save_merged, save_peft_adapter
from fedmed.privacy.random import SecureRandom
from fedmed.training.local_round import LocalTrainer

CORE = replace(EVERYWHERE, core=True)


def residuals(model: nn.Module, spec: LoraSpec, seed: int = 3) -> State:
    """Of every other adapted layer, of rank 3 or 2. `model` is plain."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for number, path in enumerate(find_targets(model, spec)[::2]):
        module = model.get_submodule(path)
        weight = module.weight.T if isinstance(module, nn.Embedding) else module.weight
        rank = 3 - number % 2
        state[f"{path}.residual_up.weight"] = 0.2 * torch.randn(weight.shape[0], rank, generator=generator)
        state[f"{path}.residual_down.weight"] = 0.2 * torch.randn(rank, *weight.shape[1:], generator=generator)
    return state


def batch(base: BaseModel, folder: Path) -> Mapping[str, Tensor]:
    manifest = mixed_cohort(folder)
    examples = manifest.examples[:5]
    made = Collator(base.processor, 512).train_batch(examples, [manifest.images(item) for item in examples])
    return made.to(DEVICE).inputs


CASES = {"core": ("llava", CORE), **{f"residual-{name}": (name, ALL_KINDS[name]) for name in ALL_KINDS}}
CASES["both"] = ("llava", CORE)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_adapter_merged_model_and_exported_adapter_give_the_same_logits(name: str, tmp_path: Path) -> None:
    architecture, spec = CASES[name]
    base = BASES[architecture]()
    inputs = batch(base, tmp_path / "site")
    plain = base.model(**inputs).logits
    moved = residuals(base.model, spec) if name != "core" else {}
    model = add_adapter(base.model, spec, 0)
    torch.testing.assert_close(model(**inputs).logits, plain)
    start = adapter_state(model)
    state = {key: start[key] + value for key, value in random_state(start).items()}
    load_adapter_state(model, state)
    without = model(**inputs).logits
    state = decode_state(encode_state(state | moved, "float32"))
    load_adapter_state(model, state)
    expected = model(**inputs).logits
    assert float((expected - plain).abs().max()) > 0.05
    assert not moved or float((expected - without).abs().max()) > 0.05

    merged = merge_adapter(base, spec, state)  # of a base whose weights are moved
    assert float((merged(**inputs).logits - expected).abs().max()) < 2e-4
    save_merged(merged, base.processor, tmp_path / "merged")
    reread = type(merged).from_pretrained(tmp_path / "merged").to(DEVICE)
    assert float((reread(**inputs).logits - expected).abs().max()) < 2e-4

    remove_adapter(model)
    assert torch.equal(base.model(**inputs).logits, plain)
    save_peft_adapter(tmp_path / "adapter", spec, state, base.name)
    exported = PeftModel.from_pretrained(base.model, str(tmp_path / "adapter"))
    assert float((exported(**inputs).logits - expected).abs().max()) < 2e-4


def test_the_cores_first_values_follow_from_the_seed(tiny_base: BaseModel) -> None:
    states = []
    for seed in (7, 7, 8):
        model = add_adapter(tiny_base.model, CORE, seed)
        states.append(adapter_state(model))
        remove_adapter(model)
    assert state_sha256(states[0]) == state_sha256(states[1]) != state_sha256(states[2])
    model = add_adapter(tiny_base.model, CORE, 7)
    assert all(parameter.requires_grad for parameter in adapter_parameters(model).values())
    for key, value in states[0].items():
        if kind_of(key) == "lora_R":
            assert value.shape == (CORE.rank, CORE.rank) and not value.any()
        if kind_of(key) == "lora_B":  # B R has elements of the size of R's
            assert float(value.square().mean()) * CORE.rank == pytest.approx(1, abs=0.2)
        if kind_of(key) == "lora_A":
            assert float(value.square().mean()) * 3 * value.shape[1] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("target", ["embed_tokens", "patch_embedding"])
def test_a_core_is_for_linear_layers(tiny_base: BaseModel, target: str) -> None:
    with pytest.raises(ModelError, match=rf"lora\.core: .*{target} is a (Embedding|Conv2d), expected linear"):
        add_adapter(tiny_base.model, replace(CORE, targets=(target,)), 0)


def test_a_copy_of_the_model_has_its_own_core(tiny_base: BaseModel, tmp_path: Path) -> None:
    inputs = batch(tiny_base, tmp_path / "site")
    model = add_adapter(tiny_base.model, CORE, 0)
    twin = copy.deepcopy(model)
    load_adapter_state(model, random_state(adapter_state(model)))
    with torch.no_grad():
        assert float((model(**inputs).logits - twin(**inputs).logits).abs().max()) > 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_residuals_are_absolute_rounded_once_and_taken_back(tiny_base: BaseModel, dtype: str) -> None:
    base = load_base("fedmed-tiny", device=DEVICE.type, dtype=dtype) if dtype != "float32" else tiny_base
    spec = ALL_KINDS["llava"]
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    one, two = residuals(base.model, spec, 1), residuals(base.model, spec, 2)
    paths = {key.rsplit(".residual_", 1)[0] for key in one}
    model = add_adapter(base.model, spec, 0)
    for state in (one, two, two, one):
        load_adapter_state(model, state)
    for path in paths:
        module = model.get_base_model().get_submodule(path).get_base_layer()
        first = before[f"{path}.weight"]
        up, down = (one[f"{path}.residual_{side}.weight"].to(DEVICE) for side in ("up", "down"))
        update = up @ down.flatten(1)
        update = update.T if isinstance(module, nn.Embedding) else update.view(first.shape)
        assert torch.equal(module.weight, (first.float() + update).to(first.dtype))
    assert torch.equal(
        model.get_base_model().lm_head.original_module.weight, before["lm_head.weight"]
    )  # tied, not moved
    load_adapter_state(model, {})
    remove_adapter(model)
    after = base.model.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight
    assert not any("_fedmed_first_weight" in vars(module) for module in base.model.modules())


def test_a_round_trains_on_the_moved_base_and_the_next_task_finds_the_first(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    """A round on W0 + U D is a round on a base whose weights are W0 + U D; a round without residual is as if none had been."""
    manifest = mixed_cohort(tmp_path / "site")
    moved = residuals(tiny_base.model, EVERYWHERE)
    trainer = LocalTrainer(tiny_base, manifest, SecureRandom())
    settings = plan(bound=0.1)
    plain = trainer.train(settings, {}, 0)
    found = trainer.train(settings, moved, 0)
    assert state_sha256(trainer.train(settings, {}, 0)) == state_sha256(plain) != state_sha256(found)
    assert not any(kind_of(key) == "residual" for key in found)
    trainer.close()
    zero = {key: value * 0 for key, value in plain.items() if kind_of(key) != SAVED}
    other = replace(tiny_base, model=merge_adapter(tiny_base, EVERYWHERE, zero | moved))
    expected = LocalTrainer(other, manifest, SecureRandom()).train(settings, {}, 0)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6)


def test_a_residual_that_does_not_fit_is_refused_before_anything_moves(tiny_base: BaseModel) -> None:
    moved = residuals(tiny_base.model, EVERYWHERE)
    first = sorted(moved)[0]
    model = add_adapter(tiny_base.model, EVERYWHERE, 0)
    start = state_sha256(adapter_state(model))
    ones = {key: torch.ones_like(value) for key, value in adapter_state(model).items()}
    for wrong, words in [
        ({first: moved[first]}, "stands alone"),
        ({**moved, first: moved[first][:, :-1]}, "has shapes"),
        ({**moved, first: moved[first] * float("nan")}, "not finite"),
        ({"model.nowhere.residual_up.weight": torch.ones(2, 2)}, "no adapted layer"),
    ]:
        with pytest.raises(ModelError, match=words):
            load_adapter_state(model, ones | wrong)
    assert state_sha256(adapter_state(model)) == start
    load_adapter_state(model, {key: value[:, :0] if "_up" in key else value[:0] for key, value in moved.items()})
    assert not any("_fedmed_first_weight" in vars(module) for module in model.modules())


def test_the_whole_adapter_has_its_core(tiny_base: BaseModel) -> None:
    model = add_adapter(tiny_base.model, CORE, 0)
    state = adapter_state(model)
    remove_adapter(model)
    last = sorted(key for key in state if kind_of(key) == "lora_R")[-1]
    with pytest.raises(ModelError, match="missing"):
        merge_adapter(tiny_base, CORE, {key: value for key, value in state.items() if key != last})
    with pytest.raises(ModelError, match=r"shape \[3, 3\], expected \[4, 4\]"):
        merge_adapter(tiny_base, CORE, {**state, last: torch.zeros(3, 3)})
    with pytest.raises(ModelError, match="expected none"):
        merge_adapter(tiny_base, EVERYWHERE, state)
