"""A base of the mapper architecture from parts that are on disk: `fedmed base mapper VISION DECODER OUT`.

    VISION   a vision tower (CLIP, SigLIP), or a model that has one (CLIP with its text side, LLaVA, fedmed-tiny)
    DECODER  a causal language model with its tokenizer, or the decoder of such a vision-language model
    -> OUT/  config.json, model.safetensors, processor, tokenizer: `load_base(OUT)`; only the mapper is new, drawn from a seed

The mapper has learnt nothing yet: train it whole (lora.modules_to_save=[multi_modal_projector]) in a first stage.

| case                                                  | result                                                       |
| ----------------------------------------------------- | ------------------------------------------------------------ |
| the decoder's processor has a chat template for images | it is kept                                                  |
| otherwise                                             | `question: ... context: <image> answer: ...`, as published   |
| the tokenizer knows no image marker                   | `<image>` is added, and is never an answer                   |
| head and embedding are one tensor                     | they stay so where it is called `embed_tokens`               |
| a tower without a pooled output, a head with a bias,  | ModelError that says so                                      |
| a tokenizer without an end token, OUT exists          |                                                              |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils.logging import disable_progress_bar

from fedmed.errors import ModelError
from fedmed.models.checkpoint import checkpoint_path
from fedmed.models.mapper import (
    PREFIX_LENGTH,
    MapperConfig,
    MapperForConditionalGeneration,
    MapperProcessor,
    new_projector,
)
from fedmed.models.virtual import vocabulary_rows

IMAGE = "<image>"
_OPTIONS = {"local_files_only": True, "trust_remote_code": False}
_WEIGHTS = {**_OPTIONS, "dtype": torch.float32, "use_safetensors": True}


@dataclass(frozen=True)
class Decoder:
    """A language model taken apart.

    Attributes:
        model: takes embeddings and gives hidden states; head: makes logits of them.
        template: the chat template of its processor, where that knows images.
    """

    model: Any
    head: nn.Linear
    tokenizer: Any
    template: str
    generation: Any


def build_mapper(
    vision: str,
    decoder: str,
    out: Path,
    *,
    prefix_length: int = PREFIX_LENGTH,
    sizes: Sequence[int] = (),
    seed: int = 0,
) -> int:
    """Writes the base to `out` and returns the mapper's number of parameters.

    Args:
        vision, decoder: `fedmed-tiny`, a folder, or a hub id that is on this disk.
        prefix_length: tokens an image.
        sizes: widths of the mapper's hidden layers; none takes the published ones.
        seed: of the mapper's first weights.

    Raises:
        ModelError: see the module's table.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} exists already", "choose a folder that is not there yet")
    disable_progress_bar()
    tower, images = _read(_load_tower, vision, "a vision tower with its image processor")
    parts = _read(_load_decoder, decoder, "a causal language model with its tokenizer")
    model, processor = assemble(tower, images, parts, prefix_length, sizes, seed)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return sum(parameter.numel() for parameter in model.model.multi_modal_projector.parameters())


def assemble(
    tower: Any, images: Any, decoder: Decoder, prefix_length: int, sizes: Sequence[int], seed: int
) -> tuple[MapperForConditionalGeneration, MapperProcessor]:
    """Model and processor of the parts, which become the model's own."""
    tokenizer = decoder.tokenizer
    if tokenizer.eos_token_id is None:
        raise ModelError("the decoder's tokenizer has no end token, expected one to stop answers at")
    if decoder.head.bias is not None:
        raise ModelError("the decoder's head has a bias, expected none", "take another decoder")
    known: str | None = getattr(tokenizer, "image_token", None)
    if not known:
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    marker: int = tokenizer.convert_tokens_to_ids(known or IMAGE)
    template = (known and decoder.template) or published_template(tokenizer, known or IMAGE)
    tied = decoder.head.weight is getattr(getattr(decoder.model, "embed_tokens", None), "weight", None)
    if not tied:  # of a decoder that ties them under another name, and would be stored without its head
        decoder.head.weight = nn.Parameter(decoder.head.weight.detach().clone())
    decoder.model.config.tie_word_embeddings = tied
    config = MapperConfig(
        vision_config=tower.config,
        text_config=decoder.model.config,
        image_token_index=marker,
        image_seq_length=prefix_length,
        projector_sizes=list(sizes) or None,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = MapperForConditionalGeneration(config)
    model.model.vision_tower, model.model.language_model = tower, decoder.model
    model.model.multi_modal_projector, model.lm_head = new_projector(config, seed), decoder.head
    model.generation_config = GenerationConfig.from_dict(decoder.generation.to_dict())
    if not known:
        _make_room(model, marker)
    return model, MapperProcessor(images, tokenizer, prefix_length, chat_template=template)


def published_template(tokenizer: Any, image: str) -> str:
    """The published prompt, `question: Q context: IMAGES answer: A`, as a chat template; later turns follow in a row."""
    start, end = (repr(token or "") for token in (tokenizer.bos_token, tokenizer.eos_token))
    return (
        "{{ " + start + " }}{% for message in messages %}"
        "{% set parts = [{'type': 'text', 'text': message['content']}] if message['content'] is string else message['content'] %}"
        "{% set words = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}"
        "{% if message['role'] == 'assistant' %}{{ ' answer: ' + words + " + end + " }}"
        "{% else %}{{ 'question: ' + words + ' context:' }}"
        "{% for part in parts if part['type'] == 'image' %}{{ ' " + image + "' }}{% endfor %}{% endif %}"
        "{% endfor %}{{ ' answer:' if add_generation_prompt else '' }}"
    )


def _make_room(model: MapperForConditionalGeneration, marker: int) -> None:
    """A row for the image marker, where the embedding has none to spare; it is no answer."""
    rows = vocabulary_rows(model)
    if marker >= rows:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model.resize_token_embeddings(marker + 1, mean_resizing=False)
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                cast(Any, layer).weight[rows:].zero_()
    settings: Any = model.generation_config
    settings.suppress_tokens = sorted({*(settings.suppress_tokens or []), marker})


def _read(load: Any, name: str, expected: str) -> Any:
    path = checkpoint_path(name)
    if path is None:
        raise ModelError(f"{name!r} is not on this disk", "give a local folder, or download it first")
    try:
        return load(path)
    except ModelError:
        raise
    # transformers raises whatever its parts raise: one place turns that into a mendable error.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"{name!r} cannot be loaded: {reason[0][:300]}", f"expected {expected}, in safetensors"
        ) from error


def _load_tower(path: Path) -> tuple[Any, Any]:
    config = AutoConfig.from_pretrained(path, **_OPTIONS)
    whole = _load_whole(path, config)
    if whole is not None:
        tower = whole.base_model.vision_tower
    elif (inner := getattr(config, "vision_config", None)) is not None:  # CLIP's two sides
        tower = type(AutoModel.from_config(inner)).from_pretrained(path, **_WEIGHTS)
    else:
        tower = AutoModel.from_pretrained(path, **_WEIGHTS)
    side = tower.config.image_size
    with torch.no_grad():
        output = tower(torch.zeros(1, tower.config.num_channels, side, side), return_dict=True)
    if getattr(output, "pooler_output", None) is None:
        raise ModelError(f"the vision tower {type(tower).__name__} has no pooled output", "take CLIP's or SigLIP's")
    return tower, AutoImageProcessor.from_pretrained(path, **_OPTIONS)


def _load_decoder(path: Path) -> Decoder:
    config = AutoConfig.from_pretrained(path, **_OPTIONS)
    whole = _load_whole(path, config)
    if whole is not None:
        processor = AutoProcessor.from_pretrained(path, **_OPTIONS)
        template = processor.chat_template or ""
        return Decoder(
            whole.base_model.language_model, whole.lm_head, processor.tokenizer, template, whole.generation_config
        )
    model = AutoModelForCausalLM.from_pretrained(path, **_WEIGHTS)
    tokenizer = AutoTokenizer.from_pretrained(path, **_OPTIONS)
    return Decoder(model.base_model, model.get_output_embeddings(), tokenizer, "", model.generation_config)


def _load_whole(path: Path, config: Any) -> Any:
    """A vision-language model with parts of the names that LLaVA's have; None for anything else."""
    if getattr(config, "text_config", None) is None or config.model_type not in ("llava", MapperConfig.model_type):
        return None
    return AutoModelForImageTextToText.from_pretrained(path, **_WEIGHTS)
