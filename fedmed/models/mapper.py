"""The prefix-tuned VQA system's architecture: one pooled feature of an image becomes k tokens of the decoder's prompt.

    image -> vision_tower -> pooled feature [R, v] -> multi_modal_projector: MLP with tanh -> [R, k, w] -> language_model

Shapes: R images, v the tower's width, k tokens an image (8), w the decoder's width. Papers: van Sonsbeek et al., Open-ended
medical VQA through prefix tuning of language models, 2023 (arXiv 2303.05977); the mapper is ClipCap's (Mokady et al., 2111.09734).

    >>> config = MapperConfig(text_config={"model_type": "llama", "hidden_size": 64}, projector_sizes=[16])
    >>> PrefixProjector(config)(torch.zeros(3, 1024)).shape
    torch.Size([3, 8, 64])

The parts have the names of LLaVA's, whose frame this is: adapters, taps, freezing and merging work as they do there. The
published system stores CLIP's feature after its own linear projection; here it is the tower's pooled output, before a
first layer that is linear as well. Its dropout of 0.5 inside the mapper is left out: models here run in eval mode.

`AutoModelForImageTextToText` knows the architecture where this module was imported, as `load_base` does.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    ProcessorMixin,
)

from fedmed.errors import ModelError

MODEL_TYPE = "fedmed_mapper"
PREFIX_LENGTH = 8


class MapperConfig(LlavaConfig):
    """As LlavaConfig; `image_seq_length` is k. `projector_sizes`: widths of the MLP's hidden layers; None takes the
    published ones, k w / 2 and k w."""

    model_type = MODEL_TYPE

    image_seq_length: int = PREFIX_LENGTH
    projector_sizes: list[int] | None = None

    @property
    def hidden_sizes(self) -> list[int]:
        """Widths of the MLP's hidden layers."""
        text: Any = self.text_config
        wide = self.image_seq_length * text.hidden_size
        return [wide // 2, wide] if self.projector_sizes is None else list(self.projector_sizes)


class PrefixProjector(nn.Sequential):
    """Pooled features [R, v] to tokens [R, k, w]: linear layers with tanh between them."""

    def __init__(self, config: MapperConfig) -> None:
        vision, text = cast(Any, config.vision_config), cast(Any, config.text_config)
        length, width = config.image_seq_length, text.hidden_size
        sizes = [vision.hidden_size, *config.hidden_sizes, length * width]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        super().__init__(*layers[:-1])
        self.shape = (length, width)

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return super().forward(input).unflatten(-1, self.shape)


class MapperModel(LlavaModel):
    """LLaVA with another way from the vision tower to the decoder."""

    config_class = MapperConfig

    def __init__(self, config: MapperConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector: Any = PrefixProjector(config)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """The tower's output, with k tokens of each image in the place of its pooled feature."""
        del kwargs  # of LLaVA's choice of layers and patches
        output: Any = self.vision_tower(pixel_values, return_dict=True)
        output.pooler_output = list(self.multi_modal_projector(output.pooler_output))
        return output


class MapperForConditionalGeneration(LlavaForConditionalGeneration):
    """The architecture as `AutoModelForImageTextToText` knows it."""

    config_class = MapperConfig

    def __init__(self, config: MapperConfig) -> None:
        super().__init__(config)
        self.model = MapperModel(config)
        self.post_init()


class MapperProcessor(ProcessorMixin):
    """Images to tensors, and the image marker of a text to k of it.

    Args:
        image_seq_length: k, the model's.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = PREFIX_LENGTH,
        image_token: str = "<image>",  # noqa: S107  a marker in a text
        chat_template: str | None = None,
    ) -> None:
        self.image_seq_length = image_seq_length
        self.image_token = getattr(tokenizer, "image_token", image_token)
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """What stands in the text for one image."""
        del image_inputs, image_idx, kwargs
        return self.image_token * self.image_seq_length


def new_projector(config: MapperConfig, seed: int) -> PrefixProjector:
    """An untrained one, drawn from `seed` as torch draws linear layers: tokens of an image that differ from the start."""
    if min([config.image_seq_length, *config.hidden_sizes]) < 1:
        raise ModelError(
            f"prefix of {config.image_seq_length} tokens, hidden layers of {config.hidden_sizes}: expected 1 or more of each"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PrefixProjector(config)


AutoConfig.register(MODEL_TYPE, MapperConfig, exist_ok=True)
AutoModelForImageTextToText.register(MapperConfig, MapperForConditionalGeneration, exist_ok=True)
AutoProcessor.register(MapperConfig, MapperProcessor, exist_ok=True)
