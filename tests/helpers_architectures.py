"""Base models of other architectures, tiny and with random weights. Import as `helpers_architectures`.

| name       | rows of the vision tower                | what is particular                                           |
| ---------- | --------------------------------------- | ------------------------------------------------------------ |
| llava      | images                                  | Conv2d; embedding and lm_head are one tensor                 |
| idefics3   | sub-images, as SmolVLM splits an image  | [B, R, ...] pixels with empty rows; Conv2d; Embedding a row  |
| mapper     | images                                  | one pooled feature becomes 8 tokens; tanh                    |
| qwen2_5_vl | patches of all images of the batch      | Conv3d; windows; a merger of 2 x 2 patches; mrope positions  |
"""

from __future__ import annotations

from pathlib import Path

import torch
from helpers_device import DEVICE
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from fedmed.messages import LoraSpec
from fedmed.models.base import BaseModel
from fedmed.models.mapper_build import Decoder, assemble
from fedmed.models.tiny import build_model, build_processor, build_tokenizer

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
# Qwen tells its images apart by the marks between them.
MARKED_TEMPLATE = CHAT_TEMPLATE.replace("<image>", "[<image>]")
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}

PARTS = ("language_model", "projector", "vision_tower")
# Every kind of adapter at once: LoRA on convolutions, embeddings and linear layers, modules trained whole.
ALL_KINDS = {
    "llava": LoraSpec(3, 6.0, PARTS, ("patch_embedding", "embed_tokens", "linear_1"), ("lm_head", "linear_2")),
    "idefics3": LoraSpec(
        3, 6.0, PARTS, ("patch_embedding", "position_embedding", "q_proj"), ("connector", "input_layernorm")
    ),
    "qwen2_5_vl": LoraSpec(
        3, 6.0, PARTS, ("patch_embed.proj", "embed_tokens", "gate_proj"), ("merger", "norm1", "lm_head")
    ),
}


def save_random_idefics3(folder: Path) -> Path:
    """Writes an Idefics3 of some 40,000 random parameters with its processor to `folder`, and returns it."""
    processor = idefics3_processor(split=False)
    idefics3_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llava_base() -> BaseModel:
    """The architecture of fedmed-tiny."""
    processor = build_processor(TEXTS)
    return _frozen("llava-random", build_model(len(processor.tokenizer), seed=0), processor)


def mapper_base() -> BaseModel:
    """fedmed-tiny's vision tower and decoder with a CLIP-to-prefix mapper between them."""
    processor = build_processor(TEXTS)
    whole = build_model(len(processor.tokenizer), seed=0)
    decoder = Decoder(
        whole.model.language_model, whole.lm_head, processor.tokenizer, processor.chat_template, whole.generation_config
    )
    model, own = assemble(whole.model.vision_tower, processor.image_processor, decoder, 8, [24], seed=0)
    return _frozen("mapper-random", model, own)


def gpt2_mapper_base() -> BaseModel:
    """The same tower before a GPT-2, as published: linear layers whose weights are [in, out]."""
    processor = build_processor(TEXTS)
    whole, ids = build_model(len(processor.tokenizer), seed=0), _token_ids(processor.tokenizer)
    config = GPT2Config(vocab_size=len(processor.tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=512, **ids)
    gpt2 = _random(GPT2LMHeadModel, config, ids)
    decoder = Decoder(
        gpt2.base_model, gpt2.lm_head, processor.tokenizer, processor.chat_template, gpt2.generation_config
    )
    model, own = assemble(whole.model.vision_tower, processor.image_processor, decoder, 8, [24], seed=0)
    return _frozen("gpt2-random", model, own)


def idefics3_base() -> BaseModel:
    """An Idefics3 that splits images as SmolVLM does: a picture becomes two to four tiles and an overview."""
    processor = idefics3_processor(split=True)
    return _frozen("idefics3-random", idefics3_model(processor), processor)


def smolvlm_base() -> BaseModel:
    """SmolVLM2's model class with Idefics3's processor: its own is the same for images, and needs torchvision."""
    processor = idefics3_processor(split=True)
    model = idefics3_model(processor, SmolVLMForConditionalGeneration, SmolVLMConfig)
    return _frozen("smolvlm-random", model, processor)


def qwen_base() -> BaseModel:
    """A Qwen2.5-VL whose images keep their proportions: their numbers of patches differ."""
    processor = QwenStillProcessor(
        Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 8 * 16, "longest_edge": 16 * 24}),
        build_tokenizer(TEXTS),
        MARKED_TEMPLATE,
    )
    return _frozen("qwen-random", qwen_model(processor), processor)


def idefics3_processor(split: bool) -> Idefics3Processor:
    edge = 2 * SIZE if split else SIZE
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": edge}, max_image_size={"longest_edge": SIZE}, do_image_splitting=split
    )
    return Idefics3Processor(images, build_tokenizer(TEXTS), image_seq_len=TOKENS, chat_template=CHAT_TEMPLATE)


def idefics3_model(
    processor: Idefics3Processor,
    kind: type[PreTrainedModel] = Idefics3ForConditionalGeneration,
    configuration: type[PreTrainedConfig] = Idefics3Config,
) -> PreTrainedModel:
    ids = _token_ids(processor.tokenizer)
    config = configuration(
        vision_config=SHAPE | {"image_size": SIZE, "patch_size": PATCH},
        text_config=SHAPE
        | ids
        | {"model_type": "llama", "vocab_size": len(processor.tokenizer), "num_key_value_heads": 2},
        image_token_id=processor.image_token_id,
        scale_factor=SCALE,
        **ids,
    )
    return _random(kind, config, ids)


class QwenStillProcessor(Qwen2_5_VLProcessor):
    """Qwen's processor for still images alone: the one for videos needs torchvision."""

    def __init__(
        self, image_processor: Qwen2VLImageProcessorPil, tokenizer: PreTrainedTokenizerBase, chat_template: str
    ) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
        self.video_token, self.video_token_id = "<|video_pad|>", -1


def qwen_model(processor: QwenStillProcessor) -> Qwen2_5_VLForConditionalGeneration:
    ids = _token_ids(processor.tokenizer)
    vision = {
        "depth": 2,
        "num_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "patch_size": 4,
        "window_size": 16,  # pixels: 2 x 2 merged patches, smaller than the pictures
        "fullatt_block_indexes": [1],
    }
    text = {"vocab_size": len(processor.tokenizer), "num_key_value_heads": 2, "tie_word_embeddings": False}
    rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=SHAPE | ids | text | rope,
        image_token_id=processor.image_token_id,
        video_token_id=len(processor.tokenizer) - 1,
        **ids,
    )
    return _random(Qwen2_5_VLForConditionalGeneration, config, ids)


def _token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}


def _random(kind: type[PreTrainedModel], config: object, ids: dict[str, int]) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    return model


def _frozen(name: str, model: PreTrainedModel, processor: ProcessorMixin) -> BaseModel:
    return BaseModel(name, "0" * 64, model.to(DEVICE).eval().requires_grad_(False), processor)


BASES = {"llava": llava_base, "idefics3": idefics3_base, "qwen2_5_vl": qwen_base}
