"""Versions of a model of a few bytes, in the store beside a folder: a process of its own, so that the database is closed again.

python -m tests.faults.small_versions RUNS NAME COUNT
"""

from __future__ import annotations

import sys
from pathlib import Path

from aggregator.registry import RunInfo, open_registry
from aggregator.registry.model_folder import write_manifest


def main() -> None:
    runs, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    registry = open_registry("", runs)
    for number in range(count):
        model = runs / f"model-{name}-{number}"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        write_manifest(model, {"run": model.name})
        registry.publish(model, RunInfo(name=name, key=model.name, run_name=model.name))


if __name__ == "__main__":
    main()
