"""A frozen base model that takes one adapter at a time; several trainers may share it, one training after the other.

    >>> shared = AdaptedBase(load_base("fedmed-tiny"))
    >>> north, harbour = (LocalTrainer(shared, manifest, SecureRandom()) for manifest in manifests)   # doctest: +SKIP

A hospital has one trainer and one base. A benchmark with ten sites in one process has ten trainers and one base: what
each keeps between its rounds (moments, encoded examples) is its own, and each round loads its own state into the adapter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftModel

from fedmed.messages import LoraSpec
from fedmed.models.adapter import add_adapter, remove_adapter
from fedmed.models.base import BaseModel


@dataclass
class AdaptedBase:
    """A base model with the adapter that was asked for last.

    Attributes:
        base: frozen; its layers get the adapter in place.
        proven: what of the present adapter fedmed.training.proof has looked at.
        changes: how often the adapter was put on or taken off: parameters of another number are gone.
    """

    base: BaseModel
    proven: set[tuple[object, ...]] = field(default_factory=set)
    changes: int = 0
    _adapted: tuple[LoraSpec, PeftModel] | None = None

    def take(self, spec: LoraSpec, seed: int) -> PeftModel:
        """The base with an adapter of this shape; a new one when the shape changed. Raises ModelError as `add_adapter`."""
        if self._adapted is None or self._adapted[0] != spec:
            self.release()
            self._adapted = (spec, add_adapter(self.base.model, spec, seed))
        return self._adapted[1]

    def release(self) -> None:
        """Takes the adapter off again."""
        if self._adapted is not None:
            remove_adapter(self._adapted[1])
        self._adapted = None
        self.proven.clear()
        self.changes += 1
