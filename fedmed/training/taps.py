"""Taps on layers: in the backward pass, where a layer's input and its output's gradient meet, the weight's gradient is
taken for each patient apart instead of summed. In: a layer of the adapted model; out: rows of the gradient matrix.

    y = layer(x);  dL/dW = sum over positions of g x^T   ->   for each patient p: sum over the positions of p alone

Shapes: P patients, N positions (examples x tokens, or image rows x tokens), i and o a layer's inputs and outputs, r the
rank. The same multiplications as in ordinary training, cut into P parts: no second backward pass, and the sum over
patients is never computed (Goodfellow, arXiv 1510.01799; for LoRA the outer products are r wide).

| layer                         | per-patient gradient                                                          |
| ----------------------------- | ----------------------------------------------------------------------------- |
| LoRA on a linear layer        | A: (s B^T g)^T x [r, i]; B: s g^T (A x) [o, r]; forward and backward fused    |
| LoRA with a core R [r, r]     | A: (s R^T B^T g)^T x; R: (s B^T g)^T (A x); B: s g^T (R A x)                  |
| linear                        | g^T x [o, i]; bias: sum of g                                                  |
| convolution (1-d, 2-d, 3-d)   | g^T unfold(x); no groups, zero padding                                        |
| embedding                     | g added to the rows of the tokens                                             |
| LoRA on an embedding          | as embedding and linear                                                       |
| LayerNorm, RMSNorm            | sum of g * normalised x; bias: sum of g                                       |
| any other with trained weights| refused by name before training (`tap_for`)                                   |

Numbers are accumulated in float32 whatever the precision of the pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from torch.nn import functional

from fedmed.errors import PrivacyError
from fedmed.models.core import core_of
from fedmed.training.gradient_matrix import Layer, Matrix
from fedmed.training.ownership import HINT


class _Tap(torch.autograd.Function):
    """Identity whose backward pass hands the layer's input and its output's gradient to `record`."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, received: Tensor, anchor: Tensor, record: Callable[..., None]) -> Tensor:
        ctx.save_for_backward(received)
        ctx.record = record
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.record(ctx.saved_tensors[0], gradients[0])
        return gradients[0], None, None, None


class _LoraProduct(torch.autograd.Function):
    """y + s B R A x, added in place to the base layer's fresh output y [..., o]; x [..., i]. Without a core R is 1."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        received: Tensor,
        anchor: Tensor,
        down: Tensor,
        up: Tensor,
        core: Tensor | None,
        tap: LoraLinearTap,
    ) -> Tensor:
        received = received.to(output.dtype)
        down, up = down.to(output.dtype), up.to(output.dtype)
        core = None if core is None else core.to(output.dtype)
        hidden = functional.linear(received, down)
        mixed = hidden if core is None else functional.linear(hidden, core)
        output.flatten(0, -2).addmm_(mixed.flatten(0, -2), up.T, alpha=tap.scale)
        ctx.save_for_backward(received, hidden, mixed, down, up, core)
        ctx.tap = tap
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        received, hidden, mixed, down, up, core = ctx.saved_tensors
        (gradient,) = gradients
        outer = (gradient @ up).mul_(ctx.tap.scale)
        inner = outer if core is None else outer @ core
        ctx.tap.record(received, hidden, mixed, gradient, outer, inner)
        return gradient, inner @ down if ctx.needs_input_grad[1] else None, None, None, None, None, None


@dataclass(frozen=True)
class LoraLinearTap:
    """PEFT's LoRA on a linear layer of any kind (the frozen layer itself may be quantised)."""

    layer: Layer
    scale: float

    def attach(self, anchor: Tensor) -> Callable[[], None]:
        module: Any = self.layer.module
        down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
        core = core_of(module)

        def forward(received: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            output = module.base_layer(received, *args, **kwargs)
            return _LoraProduct.apply(output.contiguous(), received, anchor, down, up, core, self)

        module.forward = forward
        return lambda: module.__dict__.pop("forward")

    def record(
        self, received: Tensor, hidden: Tensor, mixed: Tensor, gradient: Tensor, outer: Tensor, inner: Tensor
    ) -> None:
        """`hidden` is A x, `mixed` R A x, `outer` s B^T g, `inner` s R^T B^T g."""
        module: Any = self.layer.module
        matrix, segments = self.layer.matrix, self.layer.segments(received)
        down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
        if matrix.wants(down):
            matrix.add_products(down, inner.flatten(0, -2), received.flatten(0, -2), segments)
        core = core_of(module)
        if core is not None and matrix.wants(core):
            matrix.add_products(core, outer.flatten(0, -2), hidden.flatten(0, -2), segments)
        if matrix.wants(up):
            scaled = mixed.flatten(0, -2) * self.scale
            matrix.add_products(up, gradient.flatten(0, -2), scaled, segments)


@dataclass(frozen=True)
class LoraEmbeddingTap:
    """PEFT's LoRA on an embedding: A [r, tokens] and B [o, r] are parameters of the layer itself."""

    layer: Layer
    scale: float

    def attach(self, anchor: Tensor) -> Callable[[], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return _Tap.apply(output, args[0], anchor, self.record)

        return self.layer.module.register_forward_hook(hook).remove

    def record(self, tokens: Tensor, gradient: Tensor) -> None:
        module: Any = self.layer.module
        matrix, segments = self.layer.matrix, self.layer.segments(tokens, axes=0)
        down, up = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
        flat, ids = gradient.flatten(0, -2).float() * self.scale, tokens.flatten()
        if matrix.wants(up):
            matrix.add_products(up, flat, down.T[ids], segments)
        if matrix.wants(down):
            matrix.add_rows(down, _without_padding(flat @ up, ids, module.get_base_layer()), ids, segments, axis=1)


@dataclass(frozen=True)
class LeafTap:
    """A layer with weights of its own. `record` is one of the functions below."""

    layer: Layer
    recorder: Callable[[Layer, Tensor, Tensor], None]

    def attach(self, anchor: Tensor) -> Callable[[], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return _Tap.apply(output, args[0], anchor, self.record)

        return self.layer.module.register_forward_hook(hook).remove

    def record(self, received: Tensor, gradient: Tensor) -> None:
        self.recorder(self.layer, received, gradient)


Tap = LoraLinearTap | LoraEmbeddingTap | LeafTap


def _linear(layer: Layer, received: Tensor, gradient: Tensor) -> None:
    segments, flat = layer.segments(received), gradient.flatten(0, -2)
    inputs = received.to(gradient.dtype).flatten(0, -2)
    _add(layer, "weight", lambda own: layer.matrix.add_products(own, flat, inputs, segments))
    _add(layer, "bias", lambda own: layer.matrix.add_sums(own, flat, segments))


def _embedding(layer: Layer, tokens: Tensor, gradient: Tensor) -> None:
    segments, ids = layer.segments(tokens, axes=0), tokens.flatten()
    flat = _without_padding(gradient.flatten(0, -2).float(), ids, layer.module)
    _add(layer, "weight", lambda own: layer.matrix.add_rows(own, flat, ids, segments, axis=0))


def _without_padding(values: Tensor, ids: Tensor, embedding: Any) -> Tensor:
    """Gradients [N, a] with zeros at the padding token, whose row autograd leaves alone."""
    return values if embedding.padding_idx is None else values.masked_fill((ids == embedding.padding_idx)[:, None], 0.0)


def _norm(layer: Layer, received: Tensor, gradient: Tensor) -> None:
    module: Any = layer.module
    segments = layer.segments(received)
    values = received.float()
    if isinstance(module, nn.LayerNorm):
        normal = functional.layer_norm(values, module.normalized_shape, eps=module.eps)
    else:
        eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))
        normal = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    _add(layer, "weight", lambda own: layer.matrix.add_sums(own, (gradient.float() * normal).flatten(0, -2), segments))
    _add(layer, "bias", lambda own: layer.matrix.add_sums(own, gradient.flatten(0, -2), segments))


def _convolution(layer: Layer, received: Tensor, gradient: Tensor) -> None:
    module: Any = layer.module
    patches = _unfold(received.to(gradient.dtype), module)  # [leading, L, i * kernel]
    flat = gradient.flatten(2).transpose(1, 2)  # [leading, L, o]
    segments = layer.segments(flat)
    _add(
        layer, "weight", lambda own: layer.matrix.add_products(own, flat.flatten(0, 1), patches.flatten(0, 1), segments)
    )
    _add(layer, "bias", lambda own: layer.matrix.add_sums(own, flat.flatten(0, 1), segments))


def _unfold(values: Tensor, module: Any) -> Tensor:
    """Every position's receptive field: [leading, channels, *space] -> [leading, L, channels * kernel]."""
    spread = [step * (size - 1) + 1 for step, size in zip(module.dilation, module.kernel_size, strict=True)]
    padding = (0,) * len(spread) if module.padding == "valid" else module.padding
    pads = [pad for size in reversed(padding) for pad in (size, size)]
    values = functional.pad(values, pads)
    axes = len(spread)
    for axis in range(axes):
        values = values.unfold(2 + axis, spread[axis], module.stride[axis])
    for axis in range(axes):  # each field's own axis now stands at 2 + axes + axis
        index: list[Any] = [slice(None)] * values.dim()
        index[2 + axes + axis] = slice(None, None, module.dilation[axis])
        values = values[tuple(index)]
    leading, channels = values.shape[:2]
    order = [0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes)]
    return values.permute(order).reshape(leading, -1, channels * torch.Size(module.kernel_size).numel())


def _add(layer: Layer, attribute: str, add: Callable[[Tensor], None]) -> None:
    """Adds a weight's or bias's gradient, where the layer has one that is trained."""
    parameter: Tensor | None = getattr(layer.module, attribute, None)
    if parameter is not None and layer.matrix.wants(parameter):
        add(parameter)


def is_lora(module: nn.Module) -> bool:
    """Whether PEFT's LoRA on a linear or embedding layer, which is tapped as a whole."""
    if not isinstance(module, lora.LoraLayer):
        return False
    inner = [*module.lora_A.values(), *module.lora_B.values()]
    return bool(module.lora_embedding_A) or (bool(inner) and all(isinstance(one, nn.Linear) for one in inner))


def tap_for(module: nn.Module, name: str, part: str | None, matrix: Matrix) -> Tap:
    """The tap of a module that has trained parameters of its own, or is PEFT's LoRA around a linear layer.

    Raises:
        PrivacyError: its gradient cannot be told apart by patient; names the layer and its type.
    """
    layer = Layer(module, name, part, matrix)
    if is_lora(module):
        return _lora_tap(module, layer)
    if isinstance(module, nn.Linear):
        return LeafTap(layer, _linear)
    if isinstance(module, nn.Embedding) and module.max_norm is None and not module.scale_grad_by_freq:
        return LeafTap(layer, _embedding)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and _is_plain(module):
        return LeafTap(layer, _convolution)
    if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm"):
        return LeafTap(layer, _norm)
    raise PrivacyError(f"layer {name} ({type(module).__name__}): its gradient cannot be told apart by patient", HINT)


def _is_plain(module: Any) -> bool:
    return module.groups == 1 and module.padding_mode == "zeros" and module.padding != "same"


def _lora_tap(module: Any, layer: Layer) -> Tap:
    if module.active_adapters != ["default"] or module.lora_variant or module.merged:
        raise PrivacyError(f"layer {layer.name}: expected one plain LoRA adapter, neither DoRA nor merged", HINT)
    scale = float(module.scaling["default"])
    if "default" in module.lora_embedding_A:
        return LoraEmbeddingTap(layer, scale)
    return LoraLinearTap(layer, scale)
