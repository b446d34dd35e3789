"""Base models: the shipped one, any other architecture from disk, hashes, and errors that say what to do."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_architectures import save_random_idefics3
from PIL import Image

from fedmed.data.phantom import phantom_examples
from fedmed.errors import ModelError
from fedmed.models.base import BaseModel, load_base, resolve_device
from fedmed.models.checkpoint import checkpoint_path, checkpoint_sha256
from fedmed.models.pretrain import Schedule, build_base

TINY_SCHEDULE = Schedule(
    num_train=48, num_heldout=8, vision_steps=2, text_steps=2, align_steps=2, instruct_steps=2, batch_size=8
)


@pytest.fixture(scope="module")
def shipped() -> BaseModel:
    return load_base("fedmed-tiny")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_idefics3(tmp_path_factory.mktemp("second") / "idefics3")


def ask(base: BaseModel, question: str, pictures: list[Image.Image], max_new_tokens: int = 40) -> list[str]:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = base.processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = base.processor(
        text=[prompt] * len(pictures), images=[[picture] for picture in pictures], return_tensors="pt"
    )
    out = base.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return base.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def pictures_of(num_patients: int, kind: str) -> list[tuple[Image.Image, str]]:
    return [
        (Image.open(io.BytesIO(record.images[0].data)).convert("RGB"), record.answer)
        for record in phantom_examples(num_patients, 5, domain="public", split="test")
        if record.attributes["question_type"] == kind
    ]


def test_the_shipped_model_is_frozen_small_and_what_its_build_file_says(shipped: BaseModel) -> None:
    folder = checkpoint_path("fedmed-tiny")
    assert folder is not None
    build = json.loads((folder / "build.json").read_text())
    assert (folder / "model.safetensors").stat().st_size < 2_000_000
    assert shipped.sha256 == checkpoint_sha256(folder) == build["sha256"]
    assert not shipped.model.training
    assert all(not p.requires_grad and p.dtype == torch.float32 for p in shipped.model.parameters())
    assert sum(p.numel() for p in shipped.model.parameters()) == build["parameters"]


def test_the_shipped_model_writes_two_sentences_that_change_with_the_image(shipped: BaseModel) -> None:
    reports = ask(shipped, "Write a short report.", [picture for picture, _ in pictures_of(24, "report")])
    assert all(report.count(".") == 2 and "heart" in report for report in reports)
    assert len(set(reports)) > 5


def test_the_shipped_model_answers_public_questions_better_than_chance(shipped: BaseModel) -> None:
    known = pictures_of(48, "count")
    answers = ask(shipped, "How many nodules are there?", [picture for picture, _ in known], 4)
    assert set(answers) <= {"zero", "one", "two", "three"}


def test_another_architecture_is_saved_and_loaded_by_its_folder(second: Path) -> None:
    base = load_base(str(second), expected_sha256=checkpoint_sha256(second))
    assert type(base.model).__name__ == "Idefics3ForConditionalGeneration"
    picture = Image.new("L", (40, 20)).convert("RGB")
    assert len(ask(base, "Does this chest X-ray show consolidation?", [picture, picture], 3)) == 2


def test_the_hash_covers_every_file_but_hidden_ones_and_the_build_record(second: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(second, tmp_path / "copy")
    before = checkpoint_sha256(folder)
    (folder / "build.json").write_text("{}")
    (folder / ".cache").write_text("x")
    assert checkpoint_sha256(folder) == before
    (folder / "chat_template.jinja").write_text("another")
    changed = checkpoint_sha256(folder)
    (folder / "chat_template.jinja").rename(folder / "other.jinja")
    assert len({before, changed, checkpoint_sha256(folder)}) == 3


def test_another_hash_is_refused_with_what_to_do(second: Path) -> None:
    with pytest.raises(ModelError, match="expected 0000") as caught:
        load_base(str(second), expected_sha256="0000")
    assert "copy the consortium's folder" in caught.value.hint


def test_an_unknown_model_without_a_hub_is_a_mendable_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c"):
        with pytest.raises(ModelError, match="neither fedmed-tiny") as caught:
            load_base(name)
        assert "base_model.name" in caught.value.hint


def test_a_folder_that_is_no_such_model_is_a_mendable_error(second: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(str(tmp_path))
    folder = shutil.copytree(second, tmp_path / "weights-missing")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(str(folder))


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ModelError, match="expected auto, cpu or cuda"):
        resolve_device("tpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="TF32 is a GPU's")
def test_a_gpus_convolutions_compute_in_float32() -> None:
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    layer = load_base("fedmed-tiny", device="cuda").model.get_submodule("model.vision_tower.embeddings.patch_embedding")
    pictures = torch.randn(64, 3, 28, 28, device="cuda")
    exact = torch.nn.functional.conv2d(pictures.double(), layer.weight.double(), stride=4)
    assert float((layer(pictures) - exact).norm() / exact.norm()) < 1e-5


def test_a_build_is_repeatable_and_follows_its_seed(tmp_path: Path) -> None:
    hashes = [
        build_base(tmp_path / name, seed, schedule=TINY_SCHEDULE, threads=1, report=lambda line: None)["sha256"]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0] == load_base(str(tmp_path / "a")).sha256


def test_checkpoints_are_found_without_torch() -> None:
    code = (
        "import sys; from fedmed.models.checkpoint import *; checkpoint_sha256(checkpoint_path('fedmed-tiny'));"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
