"""Evaluation: greedy answers that do not depend on the batch, stop at the end token, and are scored."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers_device import DEVICE
from helpers_training import EVERYWHERE, mixed_cohort, random_state

from fedmed.data.collate import Collator
from fedmed.data.manifest import Manifest
from fedmed.models.adapter import adapter_state, add_adapter, load_adapter_state
from fedmed.models.base import BaseModel
from fedmed.training.evaluate import evaluate, generate_answers


def answers(base: BaseModel, manifest: Manifest, size: int, tokens: int = 6) -> list[str]:
    images = [manifest.images(example) for example in manifest.examples]
    return generate_answers(base, base.processor, manifest.examples, images, batch_size=size, max_new_tokens=tokens)


def test_answers_do_not_depend_on_the_batch(tiny_base: BaseModel, tmp_path: Path) -> None:
    manifest = mixed_cohort(tmp_path / "site")
    assert answers(tiny_base, manifest, 1) == answers(tiny_base, manifest, 5) == answers(tiny_base, manifest, 64)


@torch.no_grad()
def test_generation_is_greedy(tiny_base: BaseModel, tmp_path: Path) -> None:
    manifest = mixed_cohort(tmp_path / "site")
    example = manifest.examples[0]
    inputs = Collator(tiny_base.processor).prompt_batch([example], [manifest.images(example)])
    ids, pixels = inputs["input_ids"].to(DEVICE), inputs["pixel_values"].to(DEVICE)
    for _ in range(3):  # without a cache, one whole pass a token
        logits = tiny_base.model(input_ids=ids, pixel_values=pixels).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    tokenizer = tiny_base.processor.tokenizer
    expected = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert answers(tiny_base, manifest, 4, tokens=3)[0] == expected


def test_an_answer_stops_at_the_end_token(tiny_base: BaseModel, tmp_path: Path) -> None:
    manifest = mixed_cohort(tmp_path / "site")
    end = tiny_base.processor.tokenizer.eos_token_id
    with torch.no_grad():  # every next token is the end token
        tiny_base.model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(tiny_base.model.lm_head.weight))
        tiny_base.model.lm_head.bias = torch.nn.Parameter(
            torch.zeros(tiny_base.model.lm_head.out_features, device=DEVICE)
        )
        tiny_base.model.lm_head.bias[end] = 1.0
    assert answers(tiny_base, manifest, 8) == [""] * len(manifest.examples)


def test_scores_of_a_model_with_its_adapter(tiny_base: BaseModel, tmp_path: Path) -> None:
    manifest = mixed_cohort(tmp_path / "site")
    model = add_adapter(tiny_base.model, EVERYWHERE, 0)
    load_adapter_state(model, random_state(adapter_state(model)))
    model.train()
    scores, texts = evaluate(model, tiny_base.processor, manifest, batch_size=4, max_new_tokens=4)
    assert scores.num_items == len(texts) == len(manifest.examples)
    assert 0.0 <= scores.accuracy <= 1.0
    assert not model.training
