"""Who may import whom: hospital_client -> fedmed <- aggregator, and who must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedmed", "hospital_client", "aggregator")
# The app bundle is what Flower ships: a package of its own that names one entry point of each side, no more.
BUNDLE = "aggregator/bundle/"
BUNDLE_IMPORTS = {"hospital_client.app", "aggregator.app"}

# (importing files, what they must not import, why)
FORBIDDEN = [
    ("fedmed/", ("hospital_client", "aggregator"), "fedmed is what both sides share"),
    ("hospital_client/", ("aggregator",), "a hospital installs nothing of the consortium's"),
    ("aggregator/", ("hospital_client",), "the consortium meets a hospital on the wire alone"),
    ("fedmed/data/", ("fedmed.training", "fedmed.models", "fedmed.privacy", "fedmed.wire"), "data comes first"),
    (
        "fedmed/models/",
        ("fedmed.training", "fedmed.privacy", "fedmed.metrics", "fedmed.wire"),
        "models know no training",
    ),
    ("fedmed/privacy/", ("fedmed.training", "fedmed.models", "fedmed.data"), "privacy is pure"),
    ("fedmed/metrics/", ("fedmed.training", "fedmed.models", "fedmed.privacy", "numpy", "torch"), "scores are pure"),
    ("fedmed/training/", ("fedmed.wire", "flwr", "grpc"), "training knows no network"),
    ("fedmed/errors.py", ("fedmed",), "the error tree stands alone"),
    ("fedmed/messages.py", ("fedmed.config", "fedmed.data", "fedmed.models", "torch", "numpy"), "the wire contract"),
    ("fedmed/", ("mlflow", "fastapi", "uvicorn", "openai", "matplotlib", "jinja2"), "not installed at a hospital"),
    ("hospital_client/", ("mlflow", "fastapi", "uvicorn", "openai", "matplotlib", "jinja2"), "not installed there"),
]
# Libraries that one place alone may know.
ONLY_IN = {
    "mlflow": ("aggregator/registry/",),
    "bm25s": ("aggregator/agent/retrieval.py",),
    "opacus": ("fedmed/privacy/accounting.py",),
    "sacrebleu": ("fedmed/metrics/text.py",),
    "rouge_score": ("fedmed/metrics/text.py",),
    "pydicom": ("hospital_client/dicom/",),
}

HEAVY = ("torch", "transformers", "peft", "opacus")
LIGHT = [
    "fedmed",
    "fedmed.errors",
    "fedmed.messages",
    "fedmed.config",
    "fedmed.metrics.scores",
    "fedmed.models.checkpoint",
    "fedmed.check_cli",
    "fedmed.plan_cli",
    "fedmed.privacy.accounting",
    "fedmed.privacy.plan_text",
    "fedmed.privacy.record_accounting",
    "fedmed.wire.channel",
    "fedmed.wire.record",
    "hospital_client.cli",
    "hospital_client.app",
    "hospital_client.connect",
    "aggregator.cli",
    # Everything about data but the collator, which makes tensors; new importers are held too.
    *(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "fedmed" / "data").rglob("*.py"))
        if path.name != "collate.py"
    ),
]


@cache
def sources() -> dict[str, ast.Module]:
    """Path relative to the checkout -> syntax tree, of every module of the three packages."""
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module a file names in an import, wherever in the file; `from a import b` names both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize(("place", "forbidden", "why"), FORBIDDEN)
def test_import_direction(place: str, forbidden: tuple[str, ...], why: str) -> None:
    wrong = [
        f"{path} imports {module}"
        for path, tree in sources().items()
        if path.startswith(place) and not path.startswith(BUNDLE)
        for module in imported(tree)
        if any(is_within(module, package) for package in forbidden)
    ]
    assert not wrong, f"{why}: {wrong}"


def test_the_bundle_names_the_two_entry_points_alone() -> None:
    ours = {
        module
        for path, tree in sources().items()
        if path.startswith(BUNDLE)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (module := node.module or "").startswith(PACKAGES)
    }
    assert ours == BUNDLE_IMPORTS


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_in_one_place(library: str) -> None:
    wrong = [
        path
        for path, tree in sources().items()
        if not path.startswith(ONLY_IN[library]) and any(is_within(module, library) for module in imported(tree))
    ]
    assert not wrong


def test_light_modules_load_neither_torch_nor_transformers() -> None:
    program = "\n".join(
        [
            "import importlib, sys",
            f"for name in {LIGHT!r}:",
            "    importlib.import_module(name)",
            f"    loaded = sorted(set(sys.modules) & set({HEAVY!r}))",
            "    assert not loaded, f'{name} loads {loaded}'",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_imports_itself_in_a_circle() -> None:
    trees = sources()
    names = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in trees}
    uses = {
        name: {other for node in trees[path].body for other in imported(ast.Module([node], [])) if other in names}
        for name, path in names.items()
    }
    settled: set[str] = set()
    while ready := {name for name in uses if name not in settled and uses[name] - {name} <= settled}:
        settled |= ready
    assert not set(uses) - settled, f"circular imports among {sorted(set(uses) - settled)}"
