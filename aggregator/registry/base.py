"""What a registry is: the protocol that MlflowRegistry and MemoryRegistry both keep, and the records it deals in.

reference := NAME@ALIAS | NAME:NUMBER        fedmed@champion   fedmed@challenger   fedmed:7

>>> parse_reference("fedmed@champion")
Reference(name='fedmed', alias='champion', number=0)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedmed.errors import RegistryError

CHAMPION = "champion"
CHALLENGER = "challenger"
KEY_TAG = "fedmed.key"
RUN_TAG = "fedmed.run"
MANIFEST_TAG = "manifest_sha256"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = re.compile(r"(?i)latest|v\d+")  # by MLflow, which takes them for versions


@dataclass(frozen=True, slots=True)
class Reference:
    """One of `alias` and `number` is set; numbers begin at 1."""

    name: str
    alias: str = ""
    number: int = 0

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}" if self.alias else f"{self.name}:{self.number}"


def parse_reference(text: str) -> Reference:
    """`NAME@ALIAS` or `NAME:NUMBER`.

    Raises:
        RegistryError: for anything else, and for an alias that MLflow keeps for itself.
    """
    name, _, alias = text.partition("@")
    if alias and _NAME.fullmatch(name) and _NAME.fullmatch(alias):
        if _RESERVED.fullmatch(alias):
            raise RegistryError(
                f"alias {alias!r} is reserved, expected a word of your own", "not latest, and not v with a number"
            )
        return Reference(name, alias=alias)
    name, _, number = text.partition(":")
    if _NAME.fullmatch(name) and number.isascii() and number.isdigit() and int(number) > 0:
        return Reference(name, number=int(number))
    raise RegistryError(
        f"model reference {text!r} is not of the form NAME@ALIAS or NAME:VERSION",
        "for example fedmed@champion or fedmed:7; `fedmed registry list` shows what there is",
    )


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version. `version` counts from 1; `created` is UTC in ISO 8601; `tags` hold lineage, metrics and
    the history of aliases."""

    name: str
    version: int
    run_id: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    description: str
    created: str

    @property
    def reference(self) -> str:
        """The reference that will always mean this version."""
        return f"{self.name}:{self.version}"

    def line(self) -> str:
        """One line for a list."""
        accuracy, before = self.tags.get("final_accuracy", "-"), self.tags.get("zero_shot_accuracy", "-")
        aliases = ", ".join(self.aliases) or "-"
        return (
            f"{self.reference:14} {aliases:24} accuracy {accuracy:7} (zero-shot {before:7}) "
            f"max epsilon {self.tags.get('max_epsilon', '-'):8} {self.created}  {self.tags.get('run', '')}"
        )

    def details(self) -> str:
        """Everything that is known about the version, one fact a line."""
        head = [("version", self.reference), ("aliases", ", ".join(self.aliases) or "-"), ("created", self.created)]
        facts = [*head, ("mlflow run", self.run_id), *sorted(self.tags.items())]
        width = max(len(name) for name, _ in facts)
        lines = [f"{name:{width}}  {value}" for name, value in facts]
        return "\n".join([*lines, "", self.description]).rstrip()


@dataclass(frozen=True, slots=True)
class Metric:
    """One point of a curve; `step` is the round, `at` seconds since 1970. The same point twice is one point."""

    name: str
    value: float
    step: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a version's run tells.

    Attributes:
        name: registered model name.
        key: names the run and its outcome; publishing the same key again makes no second version.
        run_name: as a person sees it in the store; from the first round to the version there is one run of this name.
        params: the flattened configuration.
        metrics: per round.
        tags: lineage, on the run and on the version.
        description: Markdown, on the run and on the version.
        files: further files to keep with the run, such as report.json.
    """

    name: str
    key: str
    run_name: str
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    files: Sequence[Path] = ()


class Registry(Protocol):
    """A store of versions. Every method raises RegistryError when the store cannot be reached or refuses."""

    def log(self, run: RunInfo, entry: str, metrics: Sequence[Metric]) -> None:
        """Add points to the curves of `run.run_name`, which is begun when there is none; the same `entry` adds nothing."""
        ...

    def exclusive(self, name: str) -> AbstractContextManager[None]:
        """Inside the block nobody else moves an alias of the model `name`."""
        ...

    def publish(self, model_dir: Path, run: RunInfo) -> Version:
        """Verify `model_dir`, store it as the next version of `run.name`; the version of `run.key` where there is one."""
        ...

    def attach(self, version: Version, files: Sequence[Path], under: str = "") -> None:
        """Keep files with the version's run, in its folder `under`; a file of the same name is replaced."""
        ...

    def measure(self, version: Version, entry: str, metrics: Sequence[Metric]) -> None:
        """Add points to the curves of the version's run; the same `entry` adds nothing."""
        ...

    def versions(self, name: str) -> list[Version]:
        """All versions, newest first; empty when there is no such model."""
        ...

    def get(self, reference: str) -> Version:
        """The version that `reference` means now."""
        ...

    def fetch(self, reference: str, destination: Path) -> Path:
        """Copy the version's files into the new folder `destination` and verify every hash; returns `destination`."""
        ...

    def set_alias(self, version: Version, alias: str) -> Version:
        """Move `alias` to `version`. `promote` does this and keeps the history."""
        ...

    def tag(self, version: Version, tags: Mapping[str, str]) -> Version:
        """Add or replace tags of a version."""
        ...


def find(versions: Sequence[Version], reference: Reference) -> Version:
    """The version that `reference` means among all versions of its model.

    Raises:
        RegistryError: there is none; the hint names what there is.
    """
    for version in versions:
        if reference.alias in version.aliases or reference.number == version.version:
            return version
    known = [version.reference for version in versions[:5]]
    known += sorted({f"{reference.name}@{alias}" for version in versions for alias in version.aliases})
    raise RegistryError(
        f"the registry holds no {reference}",
        f"there are: {', '.join(known)}" if known else "publish a run first: fedmed run EXPERIMENT",
    )


def holder(versions: Sequence[Version], alias: str) -> Version | None:
    """The version that has `alias`, if any has."""
    return next((version for version in versions if alias in version.aliases), None)
