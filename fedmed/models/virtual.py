"""Virtual tokens: ids behind the vocabulary, at the start of every prompt, whose numbers are trained.

    model + LoraSpec(virtual_tokens=n) -> the embedding, or every k_proj and v_proj, behind a VirtualRows
    ids [B, L] with words (id < V) and virtual tokens (V + i) -> row i of a trained table in the place of the layer's own output

| `virtual_kind` | trained                                                   | source                                        |
| -------------- | --------------------------------------------------------- | --------------------------------------------- |
| prompt         | an embedding for each token: [n, width]                   | Lester et al., prompt tuning, arXiv 2104.08691 |
| prefix         | each token's key and value in every layer: [n, kv width]  | Li and Liang, prefix tuning, arXiv 2101.00190 |

The processor of fedmed.models.prompts writes the tokens, so padding, masks, positions and the cache are those of any token.
With `prefix` nothing else reads what the layers make of a virtual token: other tokens see its key and value alone, and these
are the table's. A key is turned by its position (RoPE) like any other; the position is the same in every prompt.

| case                                        | result                                                                  |
| ------------------------------------------- | ----------------------------------------------------------------------- |
| first values, prompt                        | embeddings of n words drawn from the public seed                        |
| first values, prefix                        | the keys and values that the base computes for n words, drawn likewise  |
| a decoder with one layer for q, k and v     | ModelError naming its layers: prefix needs k_proj and v_proj            |
| the layer lies in a module trained whole    | ModelError naming it                                                    |
| the base has a prefix already               | ModelError, for LoRA alone too: prefix tuning is a last stage           |
| LoRA on the same layer                      | works for words; a virtual token's output is the table's                |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmed.errors import ModelError
from fedmed.messages import LoraSpec
from fedmed.models.residual import LINEAR

TABLE = "virtual_tokens"
# Of the layer beneath, in a parameter's name; no part of a stable key.
COVERED = ".covered"
SUFFIX = f".{TABLE}.weight"


class Places:
    """Which virtual token stands where in the batch that passes: `index` [B, L], negative at words."""

    def __init__(self) -> None:
        self.index: Tensor = torch.empty(0, 0, dtype=torch.long)


class VirtualRows(nn.Module):
    """A linear layer whose output at a virtual token is the token's row of a table.

    Args:
        covered: the layer; with LoRA or not.
        places: which the embedding of the same model fills in.
        table: [n, outputs].
    """

    def __init__(self, covered: nn.Module, places: Places, table: nn.Embedding | None) -> None:
        super().__init__()
        self.covered = covered
        self.places = places
        self.virtual_tokens = table

    def forward(self, received: Tensor) -> Tensor:
        """[B, L, inputs] -> [B, L, outputs]."""
        if received.shape[:2] != self.places.index.shape:
            raise ModelError(
                f"activations {list(received.shape)} for {list(self.places.index.shape)} token ids",
                "give the model input_ids, not inputs_embeds: virtual tokens are told by their ids",
            )
        return self._replace(self.covered(received))

    @property
    def weight(self) -> Any:
        """Of the layer beneath: some models look at its dtype."""
        return self.covered.weight

    def _replace(self, output: Tensor) -> Tensor:
        if self.virtual_tokens is None:
            return output
        index = self.places.index
        # Each position looks up a row, words row 0, so that the table has one activation for each position of an
        # example; `where` gives words no share in row 0's gradient.
        rows = self.virtual_tokens(index.clamp(min=0))
        return torch.where((index >= 0).unsqueeze(-1), rows.to(output.dtype), output)


class VirtualEmbedding(VirtualRows):
    """The embedding of a model with virtual tokens: it knows the ids. `words`: V, the rows of the embedding beneath."""

    def __init__(self, covered: nn.Module, places: Places, table: nn.Embedding | None, words: int) -> None:
        super().__init__(covered, places, table)
        self.words = words

    def forward(self, received: Tensor) -> Tensor:
        """Ids [B, L] -> [B, L, width]."""
        index = received - self.words
        self.places.index = index
        return self._replace(self.covered(received.masked_fill(index >= 0, 0)))


def vocabulary_rows(model: PreTrainedModel) -> int:
    """V: rows of the input embedding; the first virtual token's id."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def virtual_paths(model: PreTrainedModel, spec: LoraSpec, saved: Sequence[str] = ()) -> list[str]:
    """Sorted paths of the layers of a plain model that get a table; [] without virtual tokens.

    Raises:
        ModelError: see the module's table.
    """
    if any(isinstance(module, VirtualRows) for module in model.modules()):
        raise ModelError("the base model has trained keys and values (prefix tuning)", "adapt the base it came from")
    if not spec.virtual_tokens:
        return []
    embedding = model.get_input_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(embedding)]] if spec.virtual_kind == "prompt" else sorted(_keys_and_values(model))
    if outer := next((name for path in found for name in saved if path.startswith(f"{name}.")), None):
        raise ModelError(f"lora.modules_to_save: {outer} holds layers of virtual tokens", "train it without them")
    return found


def add_virtual_tokens(model: PreTrainedModel, paths: Sequence[str], spec: LoraSpec) -> None:
    """Puts the layers at `paths`, with LoRA or not, behind tables of zeros in float32. See `reset_virtual_tokens`."""
    if not paths:
        return
    places, words = Places(), vocabulary_rows(model)
    embedding = model.get_input_embeddings()
    own = next(name for name, module in model.named_modules() if module is embedding)
    for path in [own, *(path for path in paths if path != own)]:
        layer = model.get_submodule(path)
        table = _table(layer, spec.virtual_tokens, path == own) if path in paths else None
        wrapped = VirtualEmbedding(layer, places, table, words) if path == own else VirtualRows(layer, places, table)
        _put(model, path, wrapped)


def remove_virtual_tokens(model: nn.Module) -> None:
    """Puts the layers beneath back, in place."""
    for path, module in list(model.named_modules()):
        if isinstance(module, VirtualRows):
            _put(model, path, module.covered)


def reset_virtual_tokens(model: nn.Module, seed: int) -> None:
    """First values from words that `seed` draws; see the module's table. LoRA beside them has been reset before."""
    layers = dict(_layers(model))
    if not layers:
        return
    embedding = next(own for own in layers.values() if isinstance(own, VirtualEmbedding))
    tables = {path: own.virtual_tokens for path, own in layers.items() if own.virtual_tokens is not None}
    count = next(iter(tables.values())).num_embeddings
    words = torch.randint(embedding.words, (1, count), generator=torch.Generator().manual_seed(seed))
    words = words.to(embedding.weight.device)
    seen: dict[str, Tensor] = {}
    hooks = [layers[path].covered.register_forward_hook(_Seen(seen, path)) for path in tables]
    with torch.no_grad():
        try:
            if embedding.virtual_tokens is not None:
                embedding(words)
            else:
                model(input_ids=words, attention_mask=torch.ones_like(words), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        for path, table in tables.items():
            table.weight.copy_(seen[path][0])


def merge_virtual_tokens(
    model: PreTrainedModel, paths: Sequence[str], state: Mapping[str, Tensor], spec: LoraSpec
) -> None:
    """Makes the virtual tokens tokens of a plain model: rows of embedding and head, which never answers with them.

    With `prompt` nothing but these rows is left; with `prefix` the keys and values stay behind tables, which `save_merged`
    keeps in a file of their own.

    Raises:
        ModelError: a table is missing, not asked for, or has another shape.
    """
    tables = {key.removesuffix(SUFFIX): value for key, value in state.items() if key.endswith(SUFFIX)}
    _check_tables(model, paths, tables, spec.virtual_tokens)
    if not paths:
        return
    words, count = vocabulary_rows(model), spec.virtual_tokens
    _extend_vocabulary(model, words, count)
    if spec.virtual_kind == "prompt":
        embedding: Any = model.get_input_embeddings()
        with torch.no_grad():
            embedding.weight[words:].copy_(tables[paths[0]])
    else:
        attach_tables(model, words, tables)


def attach_tables(model: PreTrainedModel, words: int, tables: Mapping[str, Tensor]) -> None:
    """Frozen keys and values of the tokens from id `words` on, in the layers at the tables' paths."""
    places = Places()
    embedding = model.get_input_embeddings()
    own = next(name for name, module in model.named_modules() if module is embedding)
    _put(model, own, VirtualEmbedding(embedding, places, None, words))
    for path, value in tables.items():
        layer = model.get_submodule(path)
        table = _table(layer, len(value), is_embedding=False)
        with torch.no_grad():
            table.weight.copy_(value)
        _put(model, path, VirtualRows(layer, places, table.requires_grad_(False)))


def tables_of(model: nn.Module) -> dict[str, Tensor]:
    """The tables of a model by the paths of their layers; empty where it has none."""
    return {
        path: layer.virtual_tokens.weight.detach() for path, layer in _layers(model) if layer.virtual_tokens is not None
    }


class _Seen:
    """A forward hook that keeps a layer's output."""

    def __init__(self, seen: dict[str, Tensor], path: str) -> None:
        self._seen, self._path = seen, path

    def __call__(self, module: nn.Module, received: tuple[Tensor, ...], output: Tensor) -> None:
        del module, received
        self._seen[self._path] = output


def _layers(model: nn.Module) -> Iterator[tuple[str, VirtualRows]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, VirtualRows))


def _keys_and_values(model: PreTrainedModel) -> list[str]:
    """Paths of the decoder's k_proj and v_proj."""
    decoder = ("language_model", "text_model")
    linear = [
        path for path, module in model.named_modules() if type(module) in LINEAR and set(path.split(".")) & {*decoder}
    ]
    found = [path for path in linear if path.endswith((".k_proj", ".v_proj"))]
    if not found:
        endings = sorted({path.rsplit(".", 1)[-1] for path in linear})
        raise ModelError(
            f"lora.virtual_kind=prefix: the decoder has the linear layers {endings}, expected k_proj and v_proj",
            "take lora.virtual_kind=prompt, which needs an embedding alone",
        )
    return found


def _table(layer: nn.Module, count: int, is_embedding: bool) -> nn.Embedding:
    """Zeros [n, outputs] in float32 on the layer's device."""
    weight: Any = layer.weight
    table = nn.Embedding(count, weight.shape[is_embedding], device=weight.device, dtype=torch.float32)
    nn.init.zeros_(table.weight)
    return table


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _check_tables(model: nn.Module, paths: Sequence[str], tables: Mapping[str, Tensor], count: int) -> None:
    if missing := sorted(set(paths) - set(tables)):
        raise ModelError(f"adapter tensor {missing[0]}{SUFFIX} is missing", "merge the whole adapter")
    if unknown := sorted(set(tables) - set(paths)):
        raise ModelError(f"adapter tensor {unknown[0]}{SUFFIX} was not asked for")
    for path, value in tables.items():
        layer = model.get_submodule(path)
        expected = _table(layer, count, isinstance(layer, nn.Embedding)).weight.shape
        if value.shape != expected:
            raise ModelError(f"adapter tensor {path}{SUFFIX} has shape {list(value.shape)}, expected {list(expected)}")


def _extend_vocabulary(model: PreTrainedModel, words: int, count: int) -> None:
    """`count` more rows of embedding and head. Where the head has rows of its own, the new ones are zero; whatever the rows
    are, generation never takes these ids (`suppress_tokens` of the generation config)."""
    embedding: Any = model.get_input_embeddings()
    first = embedding.weight[:1].detach().clone()
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(words + count, mean_resizing=False)
    embedding, head = model.get_input_embeddings(), cast(Any, model.get_output_embeddings())
    with torch.no_grad():
        if head.weight is not embedding.weight:
            head.weight[words:].zero_()
        embedding.weight[words:].copy_(first.expand(count, -1))  # what VirtualEmbedding gives where it has no table
    model.requires_grad_(False)
    settings: Any = model.generation_config
    settings.suppress_tokens = sorted({*(settings.suppress_tokens or []), *range(words, words + count)})
