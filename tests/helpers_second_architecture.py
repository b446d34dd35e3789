"""A second architecture, Idefics3 (the SmolVLM family), with random weights: import as `helpers_second_architecture`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, Idefics3Processor

from fedmed.models.tiny import build_tokenizer

SIZE, PATCH, SCALE = 32, 8, 2
TOKENS = (SIZE // PATCH) ** 2 // SCALE**2
TEXTS = ["Does this chest X-ray show consolidation? yes no left right both. The heart is normal in size."] * 4
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|user|>' if message['role'] == 'user' else '<|assistant|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{{ '<image>' if item['type'] == 'image' else item['text'] }}{% endfor %}{% endif %}"
    "{{ '</s>' if message['role'] == 'assistant' else '' }}{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt else '' }}"
)


def save_random_second_architecture(folder: Path) -> Path:
    """Writes an Idefics3 of some 40,000 random parameters with its processor to `folder`, and returns it."""
    processor = _processor()
    _model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _processor() -> Idefics3Processor:
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": SIZE}, max_image_size={"longest_edge": SIZE}, do_image_splitting=False
    )
    tokenizer = build_tokenizer(TEXTS)
    return Idefics3Processor(images, tokenizer, image_seq_len=TOKENS, chat_template=CHAT_TEMPLATE)


def _model(processor: Idefics3Processor) -> Idefics3ForConditionalGeneration:
    tokenizer = processor.tokenizer
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Idefics3Config(
        vision_config=shape | {"image_size": SIZE, "patch_size": PATCH},
        text_config=shape | ids | {"model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 2},
        image_token_id=processor.image_token_id,
        scale_factor=SCALE,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Idefics3ForConditionalGeneration(config)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    return model
