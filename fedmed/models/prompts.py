"""A base model's processor, with virtual tokens at the start of every prompt. In: processor and V; out: a copy that writes them.

    >>> base = load_base("fedmed-tiny")
    >>> processor = adapted_processor(base, LoraSpec(8, 16.0, ("language_model",), (), virtual_tokens=2))
    >>> message = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    >>> processor.apply_chat_template(message, tokenize=False)
    '<s><|virtual_768|><|virtual_769|><|user|>Hello'

The tokens are tokens of the tokenizer and stand in the chat template: whoever makes a prompt from the saved processor, this
package or another, gets them at the same place. See fedmed.models.virtual for what they read.

| case                                          | result                                                             |
| --------------------------------------------- | ------------------------------------------------------------------ |
| the template writes the start token           | the virtual tokens come after it                                   |
| the tokenizer writes it                       | the same                                                           |
| the embedding has more rows than tokens       | the ids between are named `<|unused_ID|>`: V is the first virtual  |
| a text holds one of the names                 | taken out or refused, as all markup is                             |
| no chat template                              | ModelError                                                         |
"""

from __future__ import annotations

import copy
import json
from typing import Any

from transformers import ProcessorMixin

from fedmed.errors import ModelError
from fedmed.messages import LoraSpec
from fedmed.models.base import BaseModel
from fedmed.models.virtual import vocabulary_rows


def adapted_processor(base: BaseModel, spec: LoraSpec) -> ProcessorMixin:
    """The processor for `base` with an adapter of this shape: its own without virtual tokens, else a changed copy.

    Raises:
        ModelError: see the module's table, or a tokenizer of more tokens than the embedding has rows.
    """
    if not spec.virtual_tokens:
        return base.processor
    processor: Any = copy.deepcopy(base.processor)
    rows, tokens = vocabulary_rows(base.model), len(processor.tokenizer)
    if tokens > rows:
        raise ModelError(f"base model {base.name!r}: {tokens} tokens for an embedding of {rows} rows, expected no more")
    names = [f"<|virtual_{number}|>" for number in range(rows, rows + spec.virtual_tokens)]
    unused = [f"<|unused_{number}|>" for number in range(tokens, rows)]
    processor.tokenizer.add_special_tokens(
        {"additional_special_tokens": [*unused, *names]}, replace_extra_special_tokens=False
    )
    found = processor.tokenizer.convert_tokens_to_ids(names)
    if found != list(range(rows, rows + spec.virtual_tokens)):
        raise ModelError(
            f"base model {base.name!r}: its tokenizer gives virtual tokens the ids {found[:3]}, expected {rows}"
        )
    processor.chat_template = _in_front(processor, "".join(names))
    return processor


def _in_front(processor: Any, names: str) -> Any:
    """The chat template, or each of several by name, with `names` at the start of what it writes."""
    template = processor.chat_template
    if isinstance(template, dict):
        return {key: _wrap(text, names, processor.tokenizer.bos_token) for key, text in template.items()}
    if not template:
        raise ModelError("the base model's processor has no chat template, expected one for virtual tokens to stand in")
    return _wrap(template, names, processor.tokenizer.bos_token)


def _wrap(template: str, names: str, start: str | None) -> str:
    # Jinja drops one newline at a template's end; in the middle of this one it would stay.
    written = template.removesuffix("\n")
    first = json.dumps(start or "", ensure_ascii=False)
    return (
        f"{{% set fedmed_prompt %}}{written}{{% endset %}}{{% set fedmed_start = {first} %}}"
        "{% if fedmed_start and fedmed_prompt.startswith(fedmed_start) %}"
        f"{{{{ fedmed_start + {json.dumps(names)} + fedmed_prompt[fedmed_start | length:] }}}}"
        f"{{% else %}}{{{{ {json.dumps(names)} + fedmed_prompt }}}}{{% endif %}}"
    )
