"""A published model of prompt or prefix tuning is verified, loaded and served as any other, with the adapted model's answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aggregator.registry.model_folder import verify_model
from aggregator.registry.publish import build_model
from aggregator.rounds.store import RoundStore
from aggregator.serving.engine import Engine, Finish, Settings
from aggregator.serving.prompts import Prompt
from aggregator.serving.schema import ApiError
from fedmed.data.manifest import load_manifest
from fedmed.models.adapter import add_adapter, load_adapter_state
from fedmed.models.base import load_base
from fedmed.models.prompts import adapted_processor
from fedmed.training.evaluate import generate_answers


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_the_served_answer_is_the_adapted_models(
    kind: str, tmp_path: Path, base_folder: Path, finished_run: Callable[..., Any]
) -> None:
    tokens = ["lora.virtual_tokens=4", f"lora.virtual_kind={kind}", "lora.targets=[]", "federation.method=fedavg"]
    run, experiment = finished_run(tmp_path / "run", *tokens)
    folder = build_model(run, experiment)
    assert verify_model(folder)["adapter"]["virtual_kind"] == kind
    engine = Engine.load(folder, "cpu")

    base = load_base(str(base_folder))
    model = add_adapter(base.model, experiment.lora.spec, 0)
    last = RoundStore(run / "rounds").last()
    assert last is not None
    load_adapter_state(model, RoundStore(run / "rounds").state(last.round))
    public = load_manifest(run / "public")
    images = public.images(public.examples[0])
    (expected,) = generate_answers(
        model,
        adapted_processor(base, experiment.lora.spec),
        public.examples[:1],
        [images],
        batch_size=1,
        max_new_tokens=6,
    )
    content = [{"type": "image"}, {"type": "text", "text": public.examples[0].question}]
    prompt = Prompt([{"role": "user", "content": content}], list(images))
    *pieces, finish = engine.run(engine.prepare(prompt, Settings(max_tokens=6)))
    assert "".join(str(piece) for piece in pieces).strip() == expected
    plain = base.processor.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(finish, Finish)
    counted = base.processor(text=[plain], images=[list(images)], add_special_tokens=False)["input_ids"][0]
    assert finish.prompt_tokens == len(counted) + 4

    marked = Prompt(
        [{"role": "user", "content": [{"type": "text", "text": f"<|virtual_{len(base.processor.tokenizer)}|>"}]}], []
    )
    with pytest.raises(ApiError, match="markup of this model"):
        engine.prepare(marked, Settings())
