"""What cannot be told apart by patient is refused by name, before a record is read or a step is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_architectures import PARTS
from helpers_training import mixed_cohort, plan
from peft import LoraConfig, get_peft_model
from torch import nn

from fedmed.data.manifest import Manifest
from fedmed.errors import ModelError, PrivacyError
from fedmed.messages import LoraSpec
from fedmed.models.adapter import adapter_parameters, add_adapter
from fedmed.models.base import BaseModel
from fedmed.models.kinds import PLAIN
from fedmed.privacy.random import SecureRandom
from fedmed.training.local_round import LocalTrainer
from fedmed.training.patient_gradients import PatientGradients


def put(module: nn.Module) -> Callable[[nn.Module], None]:
    """Adds a layer to the projector, which is trained whole."""
    return lambda model: model.get_submodule("model.multi_modal_projector").add_module("extra", module)


def share_a_weight(model: nn.Module) -> None:
    layer = model.get_submodule("model.language_model.layers.0")
    layer.post_attention_layernorm.weight = layer.input_layernorm.weight


def unreadable(folder: Path) -> Manifest:
    """A cohort without its pictures: whoever reads a record fails in another way."""
    manifest = mixed_cohort(folder / "site")
    pictures = list(manifest.folder.rglob("*.png"))
    assert pictures
    for picture in pictures:
        picture.unlink()
    return manifest


@pytest.mark.parametrize(
    ("change", "saved", "words"),
    [
        (put(nn.BatchNorm1d(8)), "multi_modal_projector", r"model\.multi_modal_projector\.extra \(BatchNorm1d\)"),
        (put(nn.GroupNorm(2, 8)), "multi_modal_projector", r"model\.multi_modal_projector\.extra \(GroupNorm\)"),
        (put(nn.LSTM(8, 8)), "multi_modal_projector", r"model\.multi_modal_projector\.extra \(LSTM\)"),
        (put(nn.Conv2d(8, 8, 3, groups=2)), "multi_modal_projector", r"projector\.extra \(Conv2d\)"),
        (put(nn.Embedding(8, 8, max_norm=1.0)), "multi_modal_projector", r"projector\.extra \(Embedding\)"),
        (put(nn.Embedding(8, 8, scale_grad_by_freq=True)), "multi_modal_projector", r"projector\.extra \(Embedding\)"),
        (lambda model: None, "vision_tower.embeddings", r"model\.vision_tower\.embeddings \(CLIPVisionEmbeddings\)"),
        (share_a_weight, "layers.0", r"model\.language_model\.layers\.0\.input_layernorm\.weight: 2 layers share it"),
    ],
)
def test_a_layer_is_refused_by_name_before_training(
    tiny_base: BaseModel, tmp_path: Path, change: Callable[[nn.Module], None], saved: str, words: str
) -> None:
    change(tiny_base.model)
    trainer = LocalTrainer(tiny_base, unreadable(tmp_path), SecureRandom())
    settings = plan(lora=LoraSpec(2, 4.0, PARTS, ("all-linear",), (saved,)), trainable=PLAIN)
    for attempt in (trainer.check, trainer.train):
        with pytest.raises(PrivacyError, match=words) as caught:
            attempt(settings, {}, 0)
        assert "lora.modules_to_save" in caught.value.hint


@pytest.mark.parametrize("target", ["linear_1", "patch_embedding"])
def test_dora_is_refused(tiny_base: BaseModel, target: str) -> None:
    model = get_peft_model(tiny_base.model, LoraConfig(r=2, target_modules=[target], use_dora=True))
    with pytest.raises(PrivacyError, match=target):
        PatientGradients(model, adapter_parameters(model), "float32")


def test_a_weight_that_serves_all_images_at_once_is_refused(tiny_base: BaseModel, tmp_path: Path) -> None:
    """CLIP looks its positions up once for all images of a batch: which patient's they are cannot be seen."""
    spec = LoraSpec(2, 4.0, ("vision_tower",), ("position_embedding",))
    trainer = LocalTrainer(tiny_base, unreadable(tmp_path), SecureRandom())
    for attempt in (trainer.check, trainer.train):
        with pytest.raises(PrivacyError, match=r"model\.vision_tower\.embeddings\.position_embedding"):
            attempt(plan(lora=spec, trainable=PLAIN), {}, 0)


def mix_examples(model: nn.Module) -> None:
    """Every example's activations have a little of the whole batch's mean."""
    layer = model.get_submodule("model.language_model.layers.0.mlp")
    layer.register_forward_hook(lambda module, args, output: output + 0.1 * output.mean(0, keepdim=True))


@pytest.mark.parametrize("hidden", [0.0, 1e30])
def test_a_layer_that_mixes_patients_is_refused_whatever_the_tasks_tensors_hide(
    tiny_base: BaseModel, tmp_path: Path, hidden: float
) -> None:
    mix_examples(tiny_base.model)
    spec = LoraSpec(2, 4.0, ("language_model",), ("q_proj", "down_proj"))
    trainer = LocalTrainer(tiny_base, unreadable(tmp_path), SecureRandom())
    state = {key: value * 0 + hidden for key, value in trainer.train(plan("none", steps=0, lora=spec), {}, 0).items()}
    with pytest.raises(PrivacyError, match="cannot be told apart by patient"):
        trainer.check(plan(lora=spec), state, 0)


def test_an_adapter_that_leaves_no_room_for_a_question_is_refused(tiny_base: BaseModel, tmp_path: Path) -> None:
    spec = LoraSpec(2, 4.0, ("language_model",), (), virtual_tokens=500)
    with pytest.raises(ModelError, match="not even a short question fits"):
        LocalTrainer(tiny_base, unreadable(tmp_path), SecureRandom()).check(plan(lora=spec, trainable=PLAIN), {}, 0)


def test_what_is_refused_leaves_the_model_as_it_was(tiny_base: BaseModel) -> None:
    put(nn.LSTM(8, 8))(tiny_base.model)
    spec = LoraSpec(2, 4.0, PARTS, ("all-linear",), ("multi_modal_projector",))
    model = add_adapter(tiny_base.model, spec, 0)
    with pytest.raises(PrivacyError):
        PatientGradients(model, adapter_parameters(model), "float32")
    assert all(parameter.requires_grad for parameter in adapter_parameters(model).values())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())
    assert torch.is_grad_enabled()


def test_an_answer_longer_than_the_models_positions_is_refused(tiny_base: BaseModel, tmp_path: Path) -> None:
    trainer = LocalTrainer(tiny_base, unreadable(tmp_path), SecureRandom())
    trainer.lacking(plan(), {}, 0, max_new_tokens=511)
    with pytest.raises(ModelError, match="max_new_tokens=512: expected less than the model's 512 positions"):
        trainer.lacking(plan(), {}, 0, max_new_tokens=512)


def test_a_base_that_takes_no_record_without_a_picture_is_not_refused(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(tiny_base.processor)
    process = kind.__call__

    def strict(self: Any, *args: Any, images: Any = None, **more: Any) -> Any:
        if not images:
            raise ValueError("images are required")
        return process(self, *args, images=images, **more)

    monkeypatch.setattr(kind, "__call__", strict)
    assert LocalTrainer(tiny_base, unreadable(tmp_path), SecureRandom()).check(plan(), {}, 0)


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        (LoraSpec(64, 512.0, PARTS, ("all-linear",), ("multi_modal_projector",)), PLAIN),
        (LoraSpec(8, 64.0, PARTS, ("all-linear",), core=True), ("lora_R",)),
    ],
)
def test_a_large_alpha_is_not_refused_for_bfloat16s_rounding(
    tiny_base: BaseModel, tmp_path: Path, spec: LoraSpec, kinds: tuple[str, ...]
) -> None:
    """Drawn tensors that alpha makes much of would, layer upon layer, make more of the rounding than the comparison allows."""
    trainer = LocalTrainer(tiny_base, unreadable(tmp_path), SecureRandom())
    assert trainer.check(plan(lora=spec, trainable=kinds, precision="bfloat16"), {}, 0)
