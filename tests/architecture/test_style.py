"""Habits of this code base that a reviewer should not have to look for."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = [
    path
    for folder in ("fedmed", "hospital_client", "aggregator", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "_pb2" not in path.name
]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXTS = [
    *CODE,
    *TESTS,
    *(path for pattern in ("*.md", "*.toml", "Makefile") for path in sorted(ROOT.glob(pattern))),
    *(
        path
        for folder in ("docs", "configs")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and path.suffix != ".png"
    ),
]
MAX_LINES = 350
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "np.save", "pickle.load"}
PATIENT_FIELDS = {"patient", "question", "answer"}
SAYS = {"print", "echo", "secho", "debug", "info", "warning", "error", "exception", "critical", "emit", "record"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    """Every call of a file with the dotted name that is called."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def test_files_are_short() -> None:
    lines = {name_of(path): len(path.read_text().splitlines()) for path in [*CODE, *TESTS]}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_modules_open_with_what_they_are() -> None:
    assert [name_of(path) for path in CODE if path.read_text().strip() and not ast.get_docstring(tree_of(path))] == []


def test_nothing_unpickles_or_runs_code_that_came_with_data() -> None:
    assert {name_of(path): found for path in CODE if (found := [*unsafe_imports(path), *unsafe_calls(path)])} == {}


def unsafe_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in names if name.split(".")[0] in UNSAFE_MODULES)


def unsafe_calls(path: Path) -> Iterator[str]:
    for call, name in calls(path):
        options = {item.arg: ast.unparse(item.value) for item in call.keywords}
        unpickles = name.endswith("np.load") and options.get("allow_pickle") != "False"
        if name in UNSAFE_CALLS or unpickles or options.get("trust_remote_code", "False") != "False":
            yield ast.unparse(call)


def test_no_patient_field_is_printed_logged_or_put_into_an_error() -> None:
    """At the site and in what it shares; the aggregator only meets the public test set."""
    files = [path for path in CODE if name_of(path).startswith(("fedmed/", "hospital_client/"))]
    assert {name_of(path): found for path in files if (found := list(tells_of_a_patient(path)))} == {}


def tells_of_a_patient(path: Path) -> Iterator[str]:
    for call, name in calls(path):
        if name.split(".")[-1] in SAYS or name.endswith("Error"):
            arguments = [*call.args, *(item.value for item in call.keywords)]
            if any(patient_fields(argument) for argument in arguments):
                yield ast.unparse(call)


def patient_fields(node: ast.AST) -> set[str]:
    """The patient fields that an expression reads: example.answer, answer, row["answer"]."""
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute):
            found.add(part.attr)
        elif isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant):
            found.add(str(part.slice.value))
    return found & PATIENT_FIELDS


def test_nothing_is_left_to_do_and_no_path_is_of_one_machine() -> None:
    # Spelt apart so that this file passes its own test.
    words = ["TO" + "DO", "FIX" + "ME", "XX" + "X", "raise NotImplemented" + "Error", "/wo" + "rk/", "/ho" + "me/"]
    pattern = re.compile("|".join(map(re.escape, words)))
    assert {
        name_of(path): found for path in TEXTS if (found := pattern.findall(path.read_text(errors="replace")))
    } == {}


@pytest.mark.parametrize(
    ("source", "check"),
    [
        ("import pickle", unsafe_imports),
        ("from joblib import load", unsafe_imports),
        ("torch.load(path)", unsafe_calls),
        ("np.load(path)", unsafe_calls),
        ("AutoProcessor.from_pretrained(name, trust_remote_code=True)", unsafe_calls),
        ("raise DataError(f'{example.patient} is unknown')", tells_of_a_patient),
        ("log.info('row %s', row['answer'])", tells_of_a_patient),
    ],
)
def test_the_checks_see_what_they_look_for(tmp_path: Path, source: str, check: Callable[[Path], Iterator[str]]) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert list(check(path))
