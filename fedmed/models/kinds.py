"""The kinds of an adapter's tensors, told by their keys. Knows no torch: policies and the method table use it too.

    >>> [kind_of(key) for key in ("m.linear.lora_A.weight", "m.embed.lora_embedding_B", "m.projector.bias")]
    ['lora_A', 'lora_B', 'saved']

| key ends in                       | kind   | tensor                                                                   |
| --------------------------------- | ------ | ------------------------------------------------------------------------ |
| lora_A.weight                     | lora_A | A of a linear layer [r, in] or a convolution [r, in, *kernel]            |
| lora_embedding_A                  | lora_A | A of an embedding [r, words]                                             |
| lora_B.weight                     | lora_B | B of a linear layer [out, r] or a convolution [out, r, 1, 1(, 1)]        |
| lora_embedding_B                  | lora_B | B of an embedding [width, r]                                             |
| anything else                     | saved  | a parameter of a module trained whole (`lora.modules_to_save`)           |
"""

from __future__ import annotations

LORA_A, LORA_B, SAVED = "lora_A", "lora_B", "saved"
KINDS = (LORA_A, LORA_B, SAVED)


def kind_of(key: str) -> str:
    """The kind of the tensor with this key: see the table above."""
    if key.endswith((".lora_A.weight", ".lora_embedding_A")):
        return LORA_A
    if key.endswith((".lora_B.weight", ".lora_embedding_B")):
        return LORA_B
    return SAVED


def layer_of(key: str) -> str:
    """Path of the adapted layer that a tensor of kind lora_A or lora_B belongs to."""
    return key.rsplit(".lora_", 1)[0]
