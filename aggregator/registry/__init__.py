"""The model registry: versions, aliases and their history.

    registry = open_registry("", Path("runs"))           # MLflow on sqlite under runs/mlflow/
    version = registry.publish(Path("runs/demo/model"), run_info)
    promote(registry, "fedmed:1", "champion", "passed the gate")
    folder = registry.fetch("fedmed@champion", Path("cache"))   # every hash verified

MLflow takes seconds to import, so it is imported when a store is first used, not here.
"""

from __future__ import annotations

from pathlib import Path

from aggregator.registry.base import CHALLENGER, CHAMPION, Metric, Registry, RunInfo, Version, parse_reference
from aggregator.registry.history import Change, promote, read_history, rollback
from aggregator.registry.memory import MemoryRegistry
from aggregator.registry.mlflow_store import MlflowRegistry
from fedmed.config_checks import ADDRESS_ALONE, has_secret
from fedmed.errors import RegistryError

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "Change",
    "MemoryRegistry",
    "Metric",
    "MlflowRegistry",
    "Registry",
    "RunInfo",
    "Version",
    "open_registry",
    "parse_reference",
    "promote",
    "read_history",
    "rollback",
]


def open_registry(uri: str, runs_dir: Path) -> MlflowRegistry:
    """The store at an MLflow tracking URI; "" is sqlite in `runs_dir/mlflow`. Touches nothing until it is used.

    Raises:
        RegistryError: the URI holds a password.
    """
    if has_secret(uri):
        raise RegistryError(f"the tracking URI {ADDRESS_ALONE}", "give the address alone")
    return MlflowRegistry(uri or f"sqlite:///{runs_dir.resolve() / 'mlflow' / 'mlflow.db'}")
