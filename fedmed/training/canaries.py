"""Patients made to be noticed, and how an auditor notices them. In: a base model; out: canaries, their gradients, scores.

    >>> examples = canary_examples(patients=2, records=3)
    >>> len(examples), len({example.patient for example in examples})
    (6, 2)

Shapes: m canaries, n numbers of the adapter.

| choice                              | why                                                                          |
| ----------------------------------- | ---------------------------------------------------------------------------- |
| public phantoms                     | nobody's data: an audit spends no budget and needs no ledger                 |
| question and answer are random      | a large loss that training has not seen: a gradient far above the bound, in  |
| letters                             | a direction of its own                                                       |
| the records of one canary are equal | their gradients point the same way: the worst case for a rule that bounds    |
|                                     | records one by one                                                           |
| a random adapter comes in           | the aggregator chooses it, so a hostile one may; it makes gradients of       |
|                                     | different canaries nearly orthogonal                                         |
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedmed.data.phantom import phantom_examples
from fedmed.data.schema import Example
from fedmed.models.adapter import State

# Of the canaries, which are public. Noise and coins never come from here.
_SEED = 20240529
_WORDS, _LETTERS = 4, 5
_SCALE = 0.2


def canary_examples(patients: int, records: int) -> list[Example]:
    """`records` equal records of each of `patients` phantoms, every phantom with a picture and a text of its own."""
    rng = np.random.default_rng(_SEED)
    phantoms = phantom_examples(patients, _SEED, domain="public", split="train")
    canaries: list[Example] = []
    for index, example in enumerate({example.patient: example for example in phantoms}.values()):
        question, answer = _random_text(rng), _random_text(rng)
        canary = replace(example, patient=f"canary-{index:04d}", question=question, answer=answer)
        canaries += [canary] * records
    return canaries


def random_state(like: State) -> State:
    """An adapter of the same shapes in which no tensor is zero."""
    generator = torch.Generator().manual_seed(_SEED)
    return {key: _SCALE * torch.randn(value.shape, generator=generator) for key, value in like.items()}


def flat(state: State) -> Tensor:
    """All numbers of a state, keys sorted: float64 [n]."""
    return torch.cat([state[key].flatten().double() for key in sorted(state)])


def amounts(directions: Tensor, total: Tensor) -> Tensor:
    """How much of each canary is in a noisy sum, by least squares: about 1 where it is in, 0 where not: [m].

    Args:
        directions: what each canary adds to the sum, which a white-box auditor knows [m, n].
        total: the noisy sum [n].
    """
    return torch.linalg.solve(directions @ directions.T, directions @ total)


def _random_text(rng: np.random.Generator) -> str:
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), (_WORDS, _LETTERS))
    return " ".join("".join(word) for word in letters)
