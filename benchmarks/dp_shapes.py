"""Models and batches whose training step is measured: fedmed-tiny on phantoms, and decoders with random weights.

    >>> case = CASES["decoder-4x256"].make(torch.device("cpu"))                                  # doctest: +SKIP
    >>> case.model, case.batch, case.parameters                                                  # doctest: +SKIP

LoRA of rank 8 on every linear layer, vision side included. A decoder answers with the last ANSWER tokens of its sequence, as
in visual question answering: a loss on every token would hide the adapter's cost behind the vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fedmed.data.collate import IGNORE, Batch, Collator
from fedmed.data.manifest import write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.messages import LoraSpec
from fedmed.models.adapter import adapter_parameters, add_adapter
from fedmed.models.base import load_base

RANK = 8
ANSWER = 16
EVERYWHERE = LoraSpec(RANK, 16.0, ("language_model", "projector", "vision_tower"), ("all-linear",))


@dataclass(frozen=True)
class Case:
    """A model on its device and one physical batch of as many patients as examples."""

    model: nn.Module
    batch: Batch
    precision: str

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return adapter_parameters(self.model)

    @property
    def patients(self) -> int:
        return len(self.batch.labels)


@dataclass(frozen=True)
class Shape:
    """How to make a case, and what it is for the table."""

    text: str
    make: Callable[[torch.device], Case]


def tiny(batch: int) -> Shape:
    """fedmed-tiny with its shipped weights on phantom chest X-rays."""

    def make(device: torch.device) -> Case:
        base = load_base("fedmed-tiny", device=device.type)
        with tempfile.TemporaryDirectory(prefix="fedmed-bench-") as scratch:
            examples = phantom_examples(batch, 0, domain="hospital", split="train")
            cohort = write_manifest(Path(scratch) / "site", examples)
            chosen = cohort.examples[:batch]
            joined = Collator(base.processor).train_batch(chosen, [cohort.images(example) for example in chosen])
        return Case(add_adapter(base.model, EVERYWHERE, 0), joined.to(device), "float32")

    return Shape(f"fedmed-tiny, 0.9 M parameters, {batch} images", make)


def decoder(
    layers: int, width: int, inner: int, heads: tuple[int, int], vocabulary: int, size: tuple[int, int]
) -> Shape:
    """A Llama-style decoder. `heads`: of queries, of keys; `size`: sequences, tokens. On a GPU in bfloat16."""
    batch, length = size

    def make(device: torch.device) -> Case:
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads[0],
            num_key_value_heads=heads[1],
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
        with torch.device(device):
            model = LlamaForCausalLM(config).requires_grad_(False).eval()
        if device.type == "cuda":
            model = model.to(torch.bfloat16)
        lora = LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0)
        adapted = get_peft_model(model, lora)
        for parameter in adapter_parameters(adapted).values():
            parameter.data = parameter.data.float()
        return Case(adapted, _text_batch(batch, length).to(device), "bfloat16" if device.type == "cuda" else "float32")

    return Shape(f"decoder {layers} x {width}, {batch} sequences of {length} tokens", make)


def _text_batch(batch: int, length: int) -> Batch:
    ids = torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(0))
    labels = torch.full((batch, length), IGNORE)
    labels[:, -ANSWER:] = ids[:, -ANSWER:]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Batch(inputs, labels, torch.zeros(0, dtype=torch.long))


_SMOL = (30, 576, 1536, (9, 3), 49152)
QUICK = {
    "tiny-b32": tiny(32),
    "decoder-4x256-s64": decoder(4, 256, 688, (4, 4), 4096, (8, 64)),
    "decoder-4x256-s512": decoder(4, 256, 688, (4, 4), 4096, (2, 512)),
}
CPU = QUICK | {
    "tiny-b128": tiny(128),
    "decoder-8x384-s256": decoder(8, 384, 1024, (6, 6), 8192, (8, 256)),
    "smollm2-135m-s64": decoder(*_SMOL, (8, 64)),
    "smollm2-135m-s256": decoder(*_SMOL, (4, 256)),
    "smollm2-135m-s512": decoder(*_SMOL, (4, 512)),
}
CUDA = QUICK | {
    "smollm2-135m-s512": decoder(*_SMOL, (16, 512)),
    "llama-1b-s512": decoder(16, 2048, 8192, (32, 8), 128256, (8, 512)),
    "llama-3b-s512": decoder(28, 3072, 8192, (24, 8), 128256, (8, 512)),
    "llama-7b-s512": decoder(32, 4096, 11008, (32, 32), 32000, (8, 512)),
}
