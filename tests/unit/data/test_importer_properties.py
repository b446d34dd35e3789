"""What holds for every importer: nothing is lost, nothing is materialised, and damage ends in a DataError or in quarantine."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from helpers_public_sets import SOURCES, medmnist, pmc_row, pmc_vqa, slake, slake_row, write_csv

from fedmed.data.importers import IMPORTERS, importer
from fedmed.data.importers.base import Tally
from fedmed.data.importers.medmnist import MedMnist
from fedmed.data.manifest import write_manifest
from fedmed.data.manifest_line import format_line, parse_line
from fedmed.data.schema import SPLITS, Example
from fedmed.errors import DataError
from tests.fuzz.mutate import ODD, dump, mutate_bytes, mutate_json

DAMAGED = ("slake_en", "path_vqa", "pmc_vqa", "pmc_vqa_captions", "pubmedqa", "medqa", "medqa_4", "chestmnist")
ROUNDS = 150


def rows_of(name: str, examples: int) -> int:
    """How many rows made so many examples."""
    entry = IMPORTERS[name]
    return examples // entry.width if isinstance(entry, MedMnist) else examples


def rules_of(name: str) -> tuple[str, ...]:
    return ("official",) if isinstance(IMPORTERS[name], MedMnist) else ("official", "image")


def require_line(example: Example) -> None:
    """A manifest takes it, and gives it back."""
    paths = [f"images/{place}.png" for place, _ in enumerate(example.images)]
    parsed = parse_line(format_line(example, paths), 1)
    assert (parsed.question, parsed.answer, parsed.choices, parsed.patient) == (
        example.question,
        example.answer,
        example.choices,
        example.patient,
    )


@pytest.mark.parametrize("name", SOURCES)
def test_every_row_is_kept_or_quarantined_and_every_example_fits_a_manifest(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path)
    for rule in rules_of(name):
        for split in SPLITS:
            imported = importer(name).read(source, split=split, split_rule=rule)
            assert imported.examples, (rule, split)
            assert imported.rows_read == rows_of(name, len(imported.examples)) + sum(imported.quarantined.values())
            assert {(item.source, item.split) for item in imported.examples} == {(name, split)}
            for example in imported.examples:
                require_line(example)


@pytest.mark.parametrize("name", SOURCES)
def test_a_split_that_is_not_there_is_said_before_the_source_is_looked_at(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no split 'dev'"):
        importer(name).stream(tmp_path / "none", Tally(), split="dev")
    with pytest.raises(DataError):
        list(importer(name).stream(tmp_path / "none", Tally(), split="train"))


@pytest.mark.parametrize("name", SOURCES)
def test_the_first_example_comes_when_one_row_was_read(name: str, tmp_path: Path) -> None:
    tally = Tally()
    examples = importer(name).stream(SOURCES[name](tmp_path), tally, split="train")
    assert isinstance(examples, Iterator)
    assert tally.rows_read == 0
    next(examples)
    assert tally.rows_read == 1


def test_a_manifest_is_written_from_a_stream(tmp_path: Path) -> None:
    for name in ("slake_zh", "pmc_vqa", "medqa", "chestmnist"):
        source = SOURCES[name](tmp_path / f"{name}_source")
        manifest = write_manifest(tmp_path / name, importer(name).stream(source, Tally(), split="train"))
        assert manifest.examples
        assert manifest.quarantined == 0


def peak_of(run: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["slake_en", "pmc_vqa_blank", "tissuemnist"])
def test_memory_does_not_grow_with_the_source(name: str, tmp_path: Path) -> None:
    """Six megabytes and more pass through less."""
    if name == "slake_en":
        source = slake(tmp_path, train=[slake_row(question="what? " * 4000, qid=number) for number in range(270)])
        size = (source / "train.json").stat().st_size
    elif name == "pmc_vqa_blank":
        source = pmc_vqa(tmp_path)
        rows = [pmc_row(Question=f"what of {number}? " * 4000) for number in range(130)]
        size = write_csv(source / "test.csv", rows).stat().st_size
    else:
        entry = IMPORTERS[name]
        assert isinstance(entry, MedMnist)
        source = medmnist(tmp_path / "tissuemnist_224.npz", entry, count=130, side=224)
        size = source.stat().st_size
    split = "test" if name == "pmc_vqa_blank" else "train"
    tally = Tally()

    def drain() -> None:
        for _ in importer(name).stream(source, tally, split=split):
            pass

    assert peak_of(drain) < 5_000_000 < 6_000_000 < size
    assert tally.rows_read > 100


def copy_or_link(source: str, destination: str) -> None:
    """Images, which no test damages, are linked: there are many."""
    os.link(source, destination) if source.endswith(".jpg") else shutil.copyfile(source, destination)


def damage(rng: Random, folder: Path) -> None:
    """Changes one file below a folder: its bytes, or its values while it stays of its format."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in DAMAGES)
    path = rng.choice(paths)
    if rng.random() < 0.3:
        path.write_bytes(mutate_bytes(rng, path.read_bytes(), [b"{}", b'[{"a": 1}]']))
    else:
        DAMAGES[path.suffix](rng, path)


def damage_json(rng: Random, path: Path) -> None:
    path.write_bytes(dump(rng, mutate_json(rng, json.loads(path.read_text()))))


def damage_jsonl(rng: Random, path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    place = rng.randrange(len(lines))
    lines[place] = dump(rng, mutate_json(rng, json.loads(lines[place]))) + b"\n"
    path.write_bytes(b"".join(lines))


def damage_csv(rng: Random, path: Path) -> None:
    with path.open(newline="") as file:
        cells = list(csv.reader(file))
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(cells)
        row[rng.randrange(len(row))] = str(rng.choice([value for value in ODD if value != 10**400]))
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file).writerows(cells)


def damage_parquet(rng: Random, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    name = rng.choice(table.column_names)
    values: list[Any] = [None, 3, "x", b"\xff", [1], {"bytes": b"x"}, {"path": "a"}, {"bytes": "text"}, 1.5]
    column = pyarrow.array([rng.choice(values)] * len(table))
    table = table.set_column(table.column_names.index(name), rng.choice([name, "other"]), column)
    pyarrow.parquet.write_table(table, path)


def damage_npz(rng: Random, path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    key = rng.choice(sorted(arrays))
    shape = rng.choice([(), (0,), (3,), (5, 1), (5, 14), (5, 8, 8), (5, 8, 8, 3), (5, 8, 8, 4), (2, 0, 8)])
    kind = rng.choice(["u1", "i8", "f4", "b1", "U3", "c16", "M8[s]", "V2"])
    new = np.zeros(shape, kind)
    arrays[key] = rng.choice([new, np.asfortranarray(arrays[key]), arrays[key][:2], arrays[key].astype("i8") - 1])
    np.savez_compressed(path, **arrays)


DAMAGES: dict[str, Callable[[Random, Path], None]] = {
    ".json": damage_json,
    ".jsonl": damage_jsonl,
    ".csv": damage_csv,
    ".parquet": damage_parquet,
    ".npz": damage_npz,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_ends_in_a_data_error_or_in_quarantine(name: str, tmp_path: Path) -> None:
    whole = SOURCES[name](tmp_path / "whole")
    root = tmp_path / "whole"
    refused = accepted = 0
    for round_ in range(ROUNDS):
        rng = Random(f"{name} {round_}")
        scratch = tmp_path / "scratch"
        shutil.copytree(root, scratch, copy_function=copy_or_link)
        damage(rng, scratch)
        rule, split = rng.choice(rules_of(name)), rng.choice(SPLITS)
        tally = Tally()
        try:
            examples = list(
                importer(name).stream(scratch / whole.relative_to(root), tally, split=split, split_rule=rule)
            )
        except DataError:
            refused += 1
        else:
            accepted += 1
            assert tally.rows_read == rows_of(name, len(examples)) + tally.left_out
            for example in examples:
                require_line(example)
        shutil.rmtree(scratch)
    assert refused > 10
    assert accepted > 10
