"""What the fuzzer feeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Target:
    """`make` draws one damaged input; `parse` takes it and returns, or raises."""

    name: str
    make: Callable[[Random], Any]
    parse: Callable[[Any], object]
